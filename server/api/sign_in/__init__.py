"""The pages by which people sign in, /auth. Programs send keys instead."""
