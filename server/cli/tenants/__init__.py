"""The commands that manage owners: theirs, their keys, and what they used."""
