"""Counts what each method trains in a base model. Loads no weights."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import transformers
from rich.console import Console
from rich.table import Table
from rich.text import Text

from server.adapters.inspecting.counts import Counts, count
from server.adapters.learning.targets import resolve_targets
from server.adapters.methods.registry import methods_by_name
from server.bases.base_files import outline_base
from server.bases.model import BaseModel

_COLUMNS = ("method", "rank", "parameters", "of base", "at rest", "random\nmatrices")


@dataclass(frozen=True)
class Row:
    """One method at one rank; `usual`: the rank that a job takes when it names none."""

    method: str
    trained: str | None
    rank: int
    usual: bool
    counts: Counts


def show_methods(
    model: str, wanted: str | Sequence[str], ranks: Sequence[int], *, usual: bool, as_json: bool
) -> None:
    """Print a table, or JSON, of what each method trains in `model` at each of `ranks`.

    `wanted` are the targets. With `usual`, each method is also shown at the rank that it takes by
    itself.
    """
    transformers.utils.logging.set_verbosity_error()
    base = outline_base(model)
    targets = resolve_targets(base, wanted)
    rows = list(_rows(base, targets, ranks, usual))
    if as_json:
        print(json.dumps(_document(base, targets, rows), indent=2))
    else:
        _show(base, targets, rows)


def _rows(
    base: BaseModel, targets: Sequence[str], ranks: Sequence[int], with_usual: bool
) -> Iterator[Row]:
    for name, kind in methods_by_name().items():
        for variant in kind.spec.variants:
            trained, usual = variant.trained, variant.rank
            method = kind.variant_of({} if trained is None else {"trained": trained})
            for rank in sorted({*ranks, usual} if with_usual else {*ranks}):
                yield Row(name, trained, rank, rank == usual, count(method, base, targets, rank))


def _parameters(base: BaseModel) -> int:
    return sum(parameter.numel() for parameter in base.model.parameters())


def _document(base: BaseModel, targets: Sequence[str], rows: Sequence[Row]) -> dict[str, object]:
    return {
        "model": base.name,
        "parameters": _parameters(base),
        "dtype": _dtype(base),
        "targets": list(targets),
        "methods": [
            {
                "method": row.method,
                "trained": row.trained,
                "rank": row.rank,
                "usual": row.usual,
                "parameters": row.counts.parameters,
                "bytes_at_rest": row.counts.bytes_at_rest,
                "basis_bytes": row.counts.basis_bytes,
            }
            for row in rows
        ],
    }


def _show(base: BaseModel, targets: Sequence[str], rows: Sequence[Row]) -> None:
    whole = _parameters(base)
    table = Table(
        *_COLUMNS,
        title=f"{base.name}: {whole:,} parameters; adapters of {len(targets)} linears",
        caption="* the rank of a job that names none. At rest: float32. Random matrices: device "
        f"memory in {_dtype(base)}, once for all adapters that read them.",
    )
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for i, row in enumerate(rows):
        after = rows[i + 1] if i + 1 < len(rows) else None
        last = after is None or (after.method, after.trained) != (row.method, row.trained)
        table.add_row(*(Text(cell) for cell in _cells(row, whole)), end_section=last)
    Console().print(table)


def _cells(row: Row, whole: int) -> tuple[str, ...]:
    counts = row.counts
    return (
        f"{row.method} {row.trained or ''}".rstrip(),
        f"{row.rank}{'*' if row.usual else ' '}",
        f"{counts.parameters:,}",
        f"{100 * counts.parameters / whole:.3f} %",
        _size(counts.bytes_at_rest),
        _size(counts.basis_bytes) if counts.basis_bytes else "none",
    )


def _dtype(base: BaseModel) -> str:
    return str(base.dtype).removeprefix("torch.")


def _size(count: int) -> str:
    size = count / 1024
    for unit in ("KiB", "MiB"):
        if size < 1024:
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
