"""What the server does and what was used, as figures and drawings. Knows no pages."""
