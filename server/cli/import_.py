"""`verandah import`: an adapter that PEFT saved, brought to a running server."""

import argparse
from pathlib import Path

from server.cli.options import add_server, connect

EXAMPLES = """examples:
  verandah import ./my-adapter --name pirate        the folder that PEFT's save_pretrained wrote
  verandah import ./my-adapter                      named as the folder

RandLoRA saved with save_projection=False (docs/peft.md says how to find out):
  verandah import ./my-adapter --torch-era 2.12 --half-dtype bfloat16
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="with adapter_config.json and .safetensors")
    parser.add_argument("--name", help="the adapter's name; default: the folder's")
    group = parser.add_argument_group(
        "how it was trained", "needed only where PEFT saved it with save_projection=False"
    )
    group.add_argument(
        "--torch-era", default="", choices=("2.11", "2.12"), help="torch up to 2.11, or from 2.12"
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
        help="what the base model was loaded in (default: float32)",
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
