"""Triton's interpreter, where there is no CUDA device: it is chosen before triton is imported."""

import os
from pathlib import Path

# The device files are asked, not torch: most tests never import it, and start at once.
if not list(Path("/dev").glob("nvidia[0-9]*")):
    os.environ["TRITON_INTERPRET"] = "1"
