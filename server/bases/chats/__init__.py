"""Chats as text: the chat template, and the system prompt that some templates write."""
