"""`verandah inspect` against the API's test server, whose findings are made up."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from PIL import Image

from clients.python import Analysis
from server.__main__ import main
from server.adapters.inspecting.findings import Findings
from server.cli.display.grids import (
    Grid,
    grid_of,
    hundredths,
    mean,
    short_names,
    shown,
    span,
    vectors_of,
)
from server.cli.display.plotting import draw
from server.errors import InvalidAdapter
from tests.api.fakes import FakeInspections, found
from tests.api.running import Publish, Running


@pytest.fixture
def inspections(server: Running, publish: Publish) -> FakeInspections:
    publish("pirate")
    publish("butler")
    assert isinstance(server.services.inspections, FakeInspections)
    return server.services.inspections


def lines_of(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.strip()]


class TestTables:
    def test_layers_by_modules(
        self, server: Running, inspections: FakeInspections, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["inspect", "pirate", "--url", server.url]) == 0
        said = capsys.readouterr().out
        assert "pirate@1: vera, rank 4, 123 trained numbers in 4 linears" in said
        rows = lines_of(said)
        assert ["layer", "q_proj", "up_proj"] in rows
        assert ["0", "2.00", "2.00"] in rows and ["1", "4.00", "4.00"] in rows
        assert ["q_proj", "6", "x", "5", "3.00", "1.50", "4.00", "3.50", "0.100", "0.300"] in rows
        assert "d moved" in said and "b RMS" in said and "similarity" not in said

    @pytest.mark.parametrize(
        ("figure", "title", "first"),
        [
            ("stable-rank", "stable rank", "4.00"),
            ("numerical-rank", "rank in float64", "4"),
            ("spectral-norm", "largest singular value", "0.500"),
            ("d", "how far d has moved", "0.100"),
            ("b", "how large b is", "0.300"),
        ],
    )
    def test_another_figure(
        self,
        server: Running,
        inspections: FakeInspections,
        capsys: pytest.CaptureFixture[str],
        figure: str,
        title: str,
        first: str,
    ) -> None:
        assert main(["inspect", "pirate", "--show", figure, "--url", server.url]) == 0
        said = capsys.readouterr().out
        assert title in said
        assert lines_of(said.split("mean over")[0])[-2] == ["0", first, first]

    def test_every_linear(
        self, server: Running, inspections: FakeInspections, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["inspect", "pirate", "--full", "--url", server.url]) == 0
        said = capsys.readouterr().out
        expected = ["1", "up_proj", "4.00", "2.00", "1.00", "4.00", "3.50", "4", "0.100", "0.300"]
        assert lines_of(said)[-1] == expected
        assert "mean over" not in said

    def test_beside_another(
        self, server: Running, inspections: FakeInspections, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["inspect", "pirate", "--compare", "butler@1", "--url", server.url]) == 0
        said = capsys.readouterr().out
        assert [str(ref) for ref in inspections.started[0]] == ["pirate@1", "butler@1"]
        assert "compared with butler@1: lora, rank 2" in said
        written = lines_of(said.split("spaces written to")[1].split("spaces read from")[0])
        assert ["0", "-", "-"] in written and ["1", "0.75", "0.75"] in written
        assert written[-1] == ["random", "0.25", "0.25"]

    def test_as_the_server_says_it(
        self, server: Running, inspections: FakeInspections, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["inspect", "pirate", "--json", "--url", server.url]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document == server.http.get("/v1/adapters/pirate/analysis").json()


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "status", "said"),
        [
            (["nobody"], 1, "'nobody' does not exist"),
            (["base"], 1, "is the base model"),
            (["pirate", "--compare", "base"], 1, "is the base model"),
            (["pirate", "--show", "x"], 2, "numerical-rank, d, b"),
            (["pirate", "--plot", "x.bmp"], 2, "must end in one of .png, .svg, .pdf"),
            (["pirate", "--plot", "/no/such/folder/x.png"], 1, "No such file"),
        ],
    )
    def test_one_line(
        self,
        server: Running,
        inspections: FakeInspections,
        capsys: pytest.CaptureFixture[str],
        arguments: list[str],
        status: int,
        said: str,
    ) -> None:
        assert main(["inspect", *arguments, "--url", server.url]) == status
        error = capsys.readouterr().err
        assert said in error and len(error.splitlines()) == 1

    def test_a_broken_adapter(
        self, server: Running, inspections: FakeInspections, capsys: pytest.CaptureFixture[str]
    ) -> None:
        inspections.failure = InvalidAdapter("tensor 'x.d' is missing")
        assert main(["inspect", "pirate", "--url", server.url]) == 1
        assert "tensor 'x.d' is missing" in capsys.readouterr().err

    def test_without_matplotlib(
        self,
        server: Running,
        inspections: FakeInspections,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.delitem(sys.modules, "server.cli.display.plotting", raising=False)
        monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
        assert main(["inspect", "pirate", "--plot", "x.png", "--url", server.url]) == 2
        assert "pip install 'verandah[plot]'" in capsys.readouterr().err
        assert inspections.started == []

    def test_it_starts_without_torch_and_matplotlib(self) -> None:
        program = (
            "import sys\n"
            "from server.__main__ import main\n"
            "try: main(['inspect', '--help'])\n"
            "except SystemExit: pass\n"
            "sys.exit(any(name in sys.modules for name in ('torch', 'matplotlib', 'numpy')))\n"
        )
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert "examples:\n  verandah inspect" in ran.stdout


class TestPlot:
    @pytest.mark.parametrize("compare", [[], ["--compare", "butler"]])
    def test_a_picture(
        self, server: Running, inspections: FakeInspections, tmp_path: Path, compare: list[str]
    ) -> None:
        file = tmp_path / "pirate.png"
        assert main(["inspect", "pirate", "--plot", str(file), *compare, "--url", server.url]) == 0
        with Image.open(file) as picture:
            width, height = picture.size
            assert picture.format == "PNG" and width > 1200
            colours = picture.convert("RGB").getcolors(maxcolors=width * height)
        assert colours is not None and len(colours) > 100

    def test_adapters_of_every_shape(self, tmp_path: Path) -> None:
        """Nothing moved, one trained tensor, linears outside any layer, nothing in common."""
        findings = found(compared=True)
        assert findings.comparison is not None
        still = [
            replace(
                layer,
                layer=None,
                module=layer.path,
                trained={"B": layer.trained["b"]},
                norm=0.0,
                relative_norm=None,
                spectral_norm=0.0,
                singular_values=(0.0, 0.0),
            )
            for layer in findings.layers
        ]
        odd = replace(
            findings,
            layers=tuple(still),
            relative_norm=None,
            comparison=replace(findings.comparison, layers=()),
        )
        draw(analysis_of(odd), tmp_path / "odd.svg")
        assert "how large B is" in (tmp_path / "odd.svg").read_text()
        draw(analysis_of(found(layers=41)), tmp_path / "deep.png")
        assert (tmp_path / "deep.png").stat().st_size > 10_000


def analysis_of(findings: Findings) -> Analysis:
    """As the client reads it."""
    document = json.loads(json.dumps({"id": "pirate@1", **asdict(findings)}))
    if document["comparison"] is not None:
        document["comparison"]["id"] = "butler@1"
    return Analysis.of(document)


class TestGrid:
    def test_missing_linears_leave_holes(self) -> None:
        layers = analysis_of(found(layers=3)).layers
        grid = grid_of([layers[4], layers[0], layers[3]], lambda layer: layer.norm)
        assert grid == Grid(
            ("0", "1", "2"), ("q_proj", "up_proj"), ((1, None), (None, 2), (3, None))
        )
        assert grid.columns == ((1, None, 3), (None, 2, None))
        assert span(grid) == (1, 3)

    def test_names_are_short_where_they_are_clear(self) -> None:
        assert short_names(["attn.c_attn", "attn.c_proj", "mlp.c_proj"]) == (
            "c_attn",
            "attn.c_proj",
            "mlp.c_proj",
        )

    def test_a_vector_counts_as_moved_only_where_all_starts_are_known(self) -> None:
        analysis = analysis_of(found())
        d, b = vectors_of(analysis).values()
        assert (d.head, d.of(analysis.layers[0])) == ("d moved", 0.1)
        assert (b.head, b.of(analysis.layers[0])) == ("b RMS", 0.3)

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (None, "-"),
            (64, "64"),
            (0.0, "0.00"),
            (1.0, "1.00"),
            (12.345, "12.3"),
            (123.4, "123"),
            (999.7, "1,000"),
            (24_715.2, "24,715"),
            (0.00123, "0.00123"),
            (0.000123, "1.2e-04"),
            (2.5e7, "2.5e+07"),
        ],
    )
    def test_figures(self, value: float | None, text: str) -> None:
        assert shown(value) == text

    def test_means_and_hundredths(self) -> None:
        assert mean([1.0, None, 2.0]) == 1.5 and mean([None]) is None
        assert hundredths(-0.001) == "0.00" and hundredths(None) == "-"
