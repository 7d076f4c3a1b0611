"""`verandah inspect`: shows what an adapter changed in its base. Knows no tensors."""

import argparse
import importlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.color import Color
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.style import Style
from rich.table import Table
from rich.text import Text

from clients.python import Analysis, Client
from clients.python.analysis_result import Comparison, LayerSimilarity, SpaceSimilarity
from server.cli.arguments.server_address import add_server, connect
from server.cli.display import grids
from server.config import BadOption

EXAMPLES = """examples:
  verandah inspect pirate                       where and how much it changed the base
  verandah inspect pirate@2 --show stable-rank  another figure in the table
  verandah inspect pirate --compare butler      do both change the same directions?
  verandah inspect pirate --full                every linear, all figures
  verandah inspect pirate --plot pirate.png     needs: pip install 'verandah[plot]'
  verandah inspect pirate --json                for programs

The figures are explained in docs/inspect.md.
"""

_NOTHING = "-"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="NAME or NAME@VERSION")
    parser.add_argument("--compare", metavar="OTHER", help="another adapter of the same base")
    parser.add_argument(
        "--show",
        default="relative-norm",
        metavar="FIGURE",
        help=f"{', '.join(grids.MEASURES)}, or a trained vector's name; default: relative-norm",
    )
    parser.add_argument("--full", action="store_true", help="show every linear on its own line")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw a picture into FILE: .png, .svg or .pdf"
    )
    parser.add_argument("--json", action="store_true", help="print the server's answer as JSON")
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    draw = None if options.plot is None else _drawing(options.plot)
    with connect(options) as client:
        analysis = _ask(client, options.name, options.compare)
    if draw is not None:
        draw(analysis)
    if options.json:
        print(json.dumps(analysis.raw))
        return 0
    _print(Console(), analysis, options)
    return 0


def _drawing(file: Path) -> Callable[[Analysis], None]:
    """A function that draws into `file`. Checked before the server works."""
    try:
        plotting = importlib.import_module("server.cli.display.plotting")
    except ImportError as error:
        raise BadOption(
            f"--plot needs matplotlib: pip install 'verandah[plot]' ({error})"
        ) from error
    known: Sequence[str] = plotting.FORMATS
    if file.suffix.removeprefix(".").lower() not in known:
        raise BadOption(f"--plot {file}: the name must end in one of .{', .'.join(known)}")
    return partial(plotting.draw, file=file)


def _ask(client: Client, name: str, compare: str | None) -> Analysis:
    """Request the analysis, with a bar on the error stream: updates of full rank take long."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("analysing {task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(name, total=None)
        return client.analysis(
            name,
            compare,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def _print(console: Console, analysis: Analysis, options: argparse.Namespace) -> None:
    measure = _chosen(options.show, analysis)
    console.print(Text(_headline(analysis)))
    if options.full:
        console.print(_every_linear(analysis))
    else:
        console.print(_heat(grids.grid_of(analysis.layers, measure.of), measure.title, grids.shown))
        console.print(_by_module(analysis))
    if analysis.comparison is not None:
        _print_comparison(console, analysis.comparison)


def _chosen(name: str, analysis: Analysis) -> grids.Measure:
    known = {**grids.MEASURES, **grids.vectors_of(analysis)}
    if name not in known:
        raise BadOption(f"--show {name!r}: choose one of {', '.join(known)}")
    return known[name]


def _headline(analysis: Analysis) -> str:
    share = grids.percent(analysis.relative_norm)
    return (
        f"{analysis.id}: {analysis.method}, rank {analysis.rank}, "
        f"{analysis.trained_parameters:,} trained numbers in {len(analysis.layers)} linears; "
        f"all updates together are {grids.shown(share)} % of the weights they change"
    )


def _table(title: str | None = None) -> Table:
    return Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 0, 0, 1)
    )


def _heat(grid: grids.Grid, title: str, show: Callable[[float | None], str]) -> Table:
    table = _table(title)
    table.add_column("layer")
    for module in grid.modules:
        table.add_column(module, justify="right")
    low, high = grids.span(grid)
    for layer, row in zip(grid.layers, grid.rows, strict=True):
        table.add_row(layer, *(_cell(show(figure), figure, min(low, 0), high) for figure in row))
    return table


def _cell(text: str, figure: float | None, low: float, high: float) -> Text:
    """A larger figure has a darker background, on terminals with colours."""
    if figure is None or high <= low:
        return Text(text)
    part = (figure - low) / (high - low)
    red, green, blue = (round(255 + part * (full - 255)) for full in (33, 90, 160))
    ink = "black" if part < 0.6 else "white"
    return Text(text, Style(color=ink, bgcolor=Color.from_rgb(red, green, blue)))


def _by_module(analysis: Analysis) -> Table:
    """Means over the layers."""
    chosen = ("relative-norm", "norm", "stable-rank", "effective-rank")
    measures = [*(grids.MEASURES[name] for name in chosen), *grids.vectors_of(analysis).values()]
    table = _with_columns(_table("mean over the layers"), ("module", "shape"), measures)
    columns = [grids.grid_of(analysis.layers, measure.of).columns for measure in measures]
    shapes = {layer.module: layer.shape for layer in analysis.layers}
    for i, (module, shape) in enumerate(
        zip(grids.short_names(shapes), shapes.values(), strict=True)
    ):
        means = (grids.shown(grids.mean(column[i])) for column in columns)
        table.add_row(module, f"{shape[0]} x {shape[1]}", *means)
    return table


def _every_linear(analysis: Analysis) -> Table:
    measures = [*grids.MEASURES.values(), *grids.vectors_of(analysis).values()]
    table = _with_columns(_table(), ("layer", "module"), measures)
    modules = list(dict.fromkeys(layer.module for layer in analysis.layers))
    names = dict(zip(modules, grids.short_names(modules), strict=True))
    for layer in analysis.layers:
        number = _NOTHING if layer.layer is None else str(layer.layer)
        table.add_row(
            number, names[layer.module], *(grids.shown(measure.of(layer)) for measure in measures)
        )
    return table


def _with_columns(table: Table, labels: Sequence[str], measures: Sequence[grids.Measure]) -> Table:
    for label in labels:
        table.add_column(label, no_wrap=True)
    for measure in measures:
        table.add_column(measure.head, justify="right")
    return table


def _print_comparison(console: Console, comparison: Comparison) -> None:
    console.print(
        Text(f"compared with {comparison.id}: {comparison.method}, rank {comparison.rank}")
    )
    layers = comparison.layers
    if not layers:
        console.print(Text("the two adapters change no linear in common"))
        return
    console.print(_spaces("spaces written to: similarity", layers, lambda layer: layer.left))
    console.print(_spaces("spaces read from: similarity", layers, lambda layer: layer.right))
    cosines = grids.grid_of(layers, lambda layer: layer.cosine)
    console.print(_heat(cosines, "the updates: cosine", grids.hundredths))


def _spaces(
    title: str,
    layers: Sequence[LayerSimilarity],
    side: Callable[[LayerSimilarity], SpaceSimilarity],
) -> Table:
    table = _heat(
        grids.grid_of(layers, lambda layer: side(layer).similarity), title, grids.hundredths
    )
    chances = grids.grid_of(layers, lambda layer: side(layer).chance).columns
    table.add_section()
    table.add_row("random", *(grids.hundredths(grids.mean(column)) for column in chances))
    return table
