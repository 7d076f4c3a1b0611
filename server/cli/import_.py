"""`verandah import`: sends an adapter that PEFT saved to a running server. Knows no formats."""

import argparse
from pathlib import Path

from server.cli.arguments.server_address import add_server, connect

EXAMPLES = """examples:
  verandah import ./my-adapter --name pirate        the folder that PEFT's save_pretrained wrote
  verandah import ./my-adapter                      takes the folder's name

RandLoRA saved with save_projection=False (docs/peft.md says how to find out):
  verandah import ./my-adapter --torch-era 2.12 --half-dtype bfloat16
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, help="holds adapter_config.json and adapter_model.safetensors"
    )
    parser.add_argument("--name", help="the adapter's name; default: the folder's")
    group = parser.add_argument_group(
        "how it was trained", "needed only if PEFT saved it with save_projection=False"
    )
    group.add_argument(
        "--torch-era",
        default="",
        choices=("2.11", "2.12"),
        help="2.11: torch up to 2.11; 2.12: torch from 2.12 on",
    )
    group.add_argument(
        "--half-dtype",
        default="",
        choices=("bfloat16", "float16"),
        help="RandLoRA: float16 if the accelerator has no bfloat16",
    )
    group.add_argument(
        "--base-dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="number format of the base model in training (default: float32)",
    )
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    with connect(options) as client:
        adapter = client.import_adapter(
            options.folder,
            options.name or options.folder.resolve().name,
            torch_era=options.torch_era,
            half_dtype=options.half_dtype,
            base_dtype=options.base_dtype,
        )
    print(adapter.id)
    return 0
