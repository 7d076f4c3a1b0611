"""How results look in a terminal, a file or a pipe."""
