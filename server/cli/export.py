"""`verandah export`: saves an adapter as a folder for other programs. Knows no formats."""

import argparse
from pathlib import Path

from server.cli.arguments.server_address import add_server, connect
from server.wiring.process import say

EXAMPLES = """examples:
  verandah export pirate --out ./pirate                        for PEFT, with its matrices
  verandah export pirate@2 --format peft-lora --out ./lora     for vLLM, SGLang and LoRAX
  verandah export pirate --format merged --out ./model         the whole model, for transformers
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="NAME, as in requests, or NAME@VERSION")
    parser.add_argument(
        "--format",
        default="peft",
        choices=("peft", "peft-lora", "merged"),
        help="peft: PEFT's own form of the method; peft-lora: a LoRA; merged: the whole model",
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to create")
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    with connect(options) as client:
        adapter = client.adapter(options.name)
        if adapter.version not in adapter.versions:
            name = options.name.partition("@")[0]
            meant = f"{name}@{adapter.versions[-1]}" if adapter.versions else "nothing yet"
            say(f"{options.name} is a checkpoint of a job; {name} is {meant}")
        for path in client.export_adapter(options.name, options.out, options.format):
            print(path)
    return 0
