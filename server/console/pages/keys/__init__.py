"""The pages of an owner's keys, members and programs."""
