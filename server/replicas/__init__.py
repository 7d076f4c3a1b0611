"""Engines in processes of their own, behind one interface."""
