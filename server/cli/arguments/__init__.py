"""Options of commands: made, read and checked. Imports neither torch nor HTTP."""
