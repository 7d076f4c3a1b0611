"""`verandah methods`: shows what each method trains in a base model. Loads no weights."""

import argparse
from typing import Annotated, Final

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from server.bases.short_names import PORCH
from server.cli.arguments.options import add_fields, read_fields
from server.jobs.queue.train_options import MAX_RANK, TARGET_SETS
from server.option_values import WITH_COMMAS
from server.wiring.process import slow_imports

EXAMPLES = """examples:
  verandah methods                                    of Porch, the embedded model
  verandah methods --model Qwen/Qwen3-0.6B --rank 8,64
  verandah methods --model llama-70b/config.json --targets q_proj,v_proj
  verandah methods --targets attention --json
"""

Rank = Annotated[int, Field(ge=1, le=MAX_RANK)]

RANKS: Final = (1, 16, 256)  # those of VeRA's Table 1


class MethodsFields(BaseSettings):
    """The options of `verandah methods`."""

    model_config = SettingsConfigDict(
        env_prefix="VERANDAH_METHODS_", frozen=True, extra="forbid", allow_inf_nan=False
    )

    model: str = Field(
        PORCH, description="porch, a folder, a .gguf file, a config.json, or a hub id"
    )
    rank: Annotated[tuple[Rank, ...] | None, *WITH_COMMAS] = Field(
        None, description=f"ranks to show; default: {', '.join(map(str, RANKS))} and each method's"
    )
    targets: Annotated[tuple[str, ...], *WITH_COMMAS] = Field(
        (TARGET_SETS[0],), description=f"{', '.join(TARGET_SETS)}, or names of linears"
    )


FIELDS = MethodsFields


def add_options(parser: argparse.ArgumentParser) -> None:
    add_fields(parser, MethodsFields, "what to count", example="model")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    fields = read_fields(options, MethodsFields)
    with slow_imports():
        from server.cli.running.method_table import show_methods

    only = fields.targets[0] if len(fields.targets) == 1 else fields.targets
    usual = fields.rank is None
    show_methods(fields.model, only, fields.rank or RANKS, usual=usual, as_json=options.json)
    return 0
