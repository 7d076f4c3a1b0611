"""A process that lends a tiny model until its standard input ends.

    python -m tests.bases.lender SOURCE SOCKET DEVICE

says "ready" when it can be asked.
"""

import sys
from pathlib import Path

import torch

from server.bases.lending import Lender, Weights
from server.bases.model import load_base


def main() -> None:
    source, socket, device = sys.argv[1:]
    torch.multiprocessing.set_sharing_strategy("file_system")
    base = load_base(source, device=device)
    lender = Lender(Weights.of(base, source), Path(socket))
    print("ready", flush=True)
    sys.stdin.read()
    lender.close()


if __name__ == "__main__":
    main()
