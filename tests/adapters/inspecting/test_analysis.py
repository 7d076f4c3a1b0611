"""What an analysis finds in adapters of every method, against the dense update."""

import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapters_store.manifest import STORED_BASIS, AdapterRef
from adapters_store.store import AdapterStore
from adapters_store.store_errors import AdapterCorrupt, AdapterNotFound
from server.adapters.inspecting import inspections as module
from server.adapters.inspecting.analysis import analyse, place_of
from server.adapters.inspecting.findings import Findings
from server.adapters.inspecting.inspections import Inspections
from server.adapters.inspecting.spectrum import Spectrum, cosine, spectrum_of_matrix
from server.adapters.learning.trainable import TrainableAdapter
from server.adapters.memory.matrices import BasisSource
from server.adapters.methods.basis_id import BasisId
from server.adapters.methods.registry import method_named, method_specs
from server.bases.model import BaseModel
from server.errors import InvalidAdapter, QueueFull, Unavailable
from tests.adapters.made import Made
from tests.models import tiny_base

VARIANTS: list[tuple[str, dict[str, str]]] = [
    *((name, {}) for name in sorted(method_specs())),
    ("vera", {"trained": "d"}),
    ("vera", {"trained": "b"}),
    ("vera", {"basis": "per-layer"}),
    ("asymmetric-lora", {"trained": "A"}),
]


def random_adapter(
    base: BaseModel,
    method: str = "vera",
    options: dict[str, str] | None = None,
    *,
    rank: int = 4,
    seed: int = 7,
    targets: str | list[str] = "all-linear",
    draw: int = 0,
) -> Made:
    """An adapter whose every stored value is drawn."""
    adapter = TrainableAdapter(base, method, rank, seed, targets, options or {})
    random = torch.Generator().manual_seed(draw)
    tensors = {
        name: torch.randn(tensor.shape, generator=random)
        for name, tensor in adapter.tensors().items()
    }
    return Made(adapter.manifest(created_at=0, provenance={}), tensors)


def dense(base: BaseModel, made: Made, path: str) -> Tensor:
    """The update to one linear, by the method's reference."""
    method, rank = method_named(made.manifest.method, made.manifest.options), made.manifest.rank
    linear = base.targets[path]
    vectors = {name: made.tensors[f"{path}.{name}"] for name in method.shapes(linear, rank)}
    matrices = BasisSource(base).matrices(BasisId.of(made.manifest), path)
    return method.dense(linear, rank, matrices, vectors, made.manifest.scale)


class Place:
    """A base, a store, and analyses of what is in it."""

    def __init__(self, base: BaseModel, folder: Path) -> None:
        self.base = base
        self.store = AdapterStore(folder)
        self.inspections = Inspections(base, self.store, max_rank=32)

    def publish(self, made: Made, name: str = "pet") -> AdapterRef:
        return self.store.publish("ann", name, made.manifest, made.tensors)

    def find(self, ref: AdapterRef, other: AdapterRef | None = None) -> Findings:
        return self.inspections.start(ref, other).findings.result(30)


@pytest.fixture(scope="module")
def llama() -> BaseModel:
    return tiny_base("llama")


@pytest.fixture
def place(llama: BaseModel, tmp_path: Path) -> Iterator[Place]:
    place = Place(llama, tmp_path)
    yield place
    place.inspections.close()


@pytest.mark.parametrize(("method", "options"), VARIANTS)
def test_factors_are_the_reference(llama: BaseModel, method: str, options: dict[str, str]) -> None:
    made = random_adapter(llama, method, options)
    chosen = method_named(made.manifest.method, made.manifest.options)
    for path in made.manifest.targets[:7]:
        linear = llama.targets[path]
        vectors = {name: made.tensors[f"{path}.{name}"] for name in chosen.shapes(linear, 4)}
        matrices = BasisSource(llama).matrices(BasisId.of(made.manifest), path)
        factors = chosen.factors(linear, 4, matrices, vectors, made.manifest.scale)
        assert (factors is None) == (method == "randlora")
        if factors is None:
            continue
        left, right = factors
        assert left.shape == (linear.out_features, 4) and right.shape == (4, linear.in_features)
        torch.testing.assert_close(left @ right, dense(llama, made, path))


@pytest.mark.parametrize(("method", "options"), VARIANTS)
def test_every_method_against_torchs_decomposition(
    place: Place, method: str, options: dict[str, str]
) -> None:
    made = random_adapter(place.base, method, options)
    findings = place.find(place.publish(made))
    assert (findings.method, findings.rank) == (method, 4)
    assert findings.trained_parameters == sum(t.numel() for t in made.tensors.values())
    assert sorted(layer.path for layer in findings.layers) == sorted(made.manifest.targets)
    updates, weights = 0.0, 0.0
    for layer in findings.layers:
        update = dense(place.base, made, layer.path)
        weight = place.base.targets[layer.path].module.get_parameter("weight").double()
        values = torch.linalg.svdvals(update)
        norm, weight_norm = float(update.norm()), float(weight.norm())
        assert layer.shape == tuple(update.shape)
        assert layer.norm == pytest.approx(norm)
        assert layer.weight_norm == pytest.approx(weight_norm)
        assert layer.relative_norm == pytest.approx(norm / weight_norm)
        assert layer.spectral_norm == pytest.approx(float(values[0]))
        assert layer.stable_rank == pytest.approx(norm**2 / float(values[0]) ** 2)
        assert layer.numerical_rank == int(torch.linalg.matrix_rank(update))
        told = torch.tensor(layer.singular_values, dtype=torch.float64)
        torch.testing.assert_close(told, values[: len(told)])
        assert len(told) == (min(64, *update.shape) if method == "randlora" else 4)
        updates, weights = updates + norm**2, weights + weight_norm**2
    assert findings.relative_norm == pytest.approx(math.sqrt(updates / weights))


@pytest.mark.parametrize(("method", "options"), VARIANTS)
def test_two_adapters_side_by_side(place: Place, method: str, options: dict[str, str]) -> None:
    mine = random_adapter(place.base, method, options)
    theirs = random_adapter(place.base, rank=3, seed=8, targets=["q_proj", "up_proj"], draw=1)
    findings = place.find(place.publish(mine), place.publish(theirs, "other"))
    comparison = findings.comparison
    assert comparison is not None and (comparison.method, comparison.rank) == ("vera", 3)
    assert sorted(layer.path for layer in comparison.layers) == sorted(theirs.manifest.targets)
    for layer in comparison.layers:
        x, y = (
            spectrum_of_matrix(dense(place.base, m, layer.path), spaces=True)
            for m in (mine, theirs)
        )
        assert layer.left.similarity == pytest.approx(projected(x, y, "left"))
        assert layer.right.similarity == pytest.approx(projected(x, y, "right"))
        assert layer.left.directions[1] == 3
        assert layer.cosine == pytest.approx(cosine(x, y))


def projected(x: Spectrum, y: Spectrum, side: str) -> float:
    """The measure by projectors: trace(P_x P_y) / min(r1, r2)."""
    spaces = [s.left_space(64) if side == "left" else s.right_space(64) for s in (x, y)]
    first, second = (space @ space.t() for space in spaces)
    return float(torch.trace(first @ second)) / min(space.shape[1] for space in spaces)


def test_an_adapter_beside_itself_and_a_frozen_side(place: Place) -> None:
    mine = place.publish(random_adapter(place.base, "asymmetric-lora"))
    theirs = place.publish(random_adapter(place.base, "asymmetric-lora", draw=1), "other")
    itself = place.find(mine, mine).comparison
    assert itself is not None
    for layer in itself.layers:
        assert layer.left.similarity == pytest.approx(1)
        assert [layer.right.similarity, layer.cosine] == pytest.approx([1, 1])
    other = place.find(mine, theirs).comparison
    assert other is not None
    for layer in other.layers:
        assert layer.right.similarity == pytest.approx(1)  # A is the seed's, and the same
        assert layer.left.similarity is not None and layer.left.similarity < 0.5


class TestMovement:
    def test_a_new_adapter_has_not_moved(self, place: Place) -> None:
        adapter = TrainableAdapter(place.base, "vera", 4, 7, "attention", {"d_initial": "0.2"})
        new = Made(adapter.manifest(created_at=0, provenance={}), adapter.tensors())
        ref = place.publish(new)
        findings = place.find(ref, ref)
        for layer in findings.layers:
            d, b = layer.trained["d"], layer.trained["b"]
            assert [d.rms, d.moved, d.relative] == pytest.approx([0.2, 0, 0])
            assert (b.rms, b.moved, b.relative) == (0, 0, None)
            assert (layer.norm, layer.stable_rank, layer.relative_norm) == (0, 0, 0)
        assert findings.comparison is not None
        assert findings.comparison.layers[0].left.similarity is None

    def test_figure_3_is_the_change_of_d_over_its_start(self, place: Place) -> None:
        made = random_adapter(place.base, targets="attention")
        layer = place.find(place.publish(made)).layers[0]
        d = made.tensors[f"{layer.path}.d"].double()
        expected = float((d - 0.1).square().mean().sqrt())
        assert layer.trained["d"].moved == pytest.approx(expected)
        assert layer.trained["d"].relative == pytest.approx(expected / 0.1)

    def test_in_the_unit_that_is_trained(self, place: Place) -> None:
        made = random_adapter(place.base, targets="attention")
        layer = place.find(place.publish(made)).layers[0]
        method, linear = method_named("vera"), place.base.targets[layer.path]
        b = made.tensors[f"{layer.path}.b"].double() / method.unit(linear, 4)["b"]
        assert layer.trained["b"].rms == pytest.approx(float(b.square().mean().sqrt()))

    def test_a_start_that_is_not_stored_is_not_made_up(self, place: Place) -> None:
        layer = place.find(place.publish(random_adapter(place.base, "lora"))).layers[0]
        assert (layer.trained["A"].moved, layer.trained["A"].relative) == (None, None)
        assert layer.trained["A"].rms > 0
        assert layer.trained["B"].moved == layer.trained["B"].rms

    def test_nor_that_of_an_import(self, place: Place) -> None:
        made = random_adapter(place.base)
        size = max(max(t.in_features, t.out_features) for t in place.base.targets.values())
        random = torch.Generator().manual_seed(0)
        basis = {
            "a": torch.randn(4, size, generator=random),
            "b": torch.randn(size, 4, generator=random),
        }
        foreign = replace(
            made.manifest,
            basis_spec=STORED_BASIS,
            seed=0,
            basis_sha256=place.store.imported_bases.keep(basis),
        )
        layer = place.find(place.publish(Made(foreign, made.tensors))).layers[0]
        assert {vector.moved for vector in layer.trained.values()} == {None}
        d, b = (made.tensors[f"{layer.path}.{name}"].double() for name in "db")
        out_features, in_features = layer.shape
        left = b[:, None] * basis["b"][:out_features].double()
        update = left @ (d[:, None] * basis["a"][:, :in_features].double())
        assert layer.norm == pytest.approx(float(update.norm()))


def test_a_model_whose_weights_are_stored_transposed(tmp_path: Path) -> None:
    place = Place(tiny_base("gpt2"), tmp_path)
    made = random_adapter(place.base)
    layers = {layer.path: layer for layer in place.find(place.publish(made)).layers}
    place.inspections.close()
    wide = layers["transformer.h.1.attn.c_attn"]
    assert (wide.layer, wide.module, wide.shape) == (1, "attn.c_attn", (144, 48))
    assert wide.norm == pytest.approx(float(dense(place.base, made, wide.path).norm()))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("model.layers.3.mlp.up_proj", (3, "mlp.up_proj")),
        ("transformer.h.11.attn.c_attn", (11, "attn.c_attn")),
        ("0.fc", (0, "fc")),
        ("model.layers2.project_out", (None, "model.layers2.project_out")),
    ],
)
def test_places(path: str, expected: tuple[int | None, str]) -> None:
    assert place_of(path) == expected


class TestInspections:
    def test_the_same_content_is_analysed_once(self, place: Place) -> None:
        made = random_adapter(place.base, targets="attention")
        first, again = place.publish(made), place.publish(made, "copy")
        sha256 = place.store.open(first).sha256
        assert not place.inspections.known(sha256)
        inspection = place.inspections.start(first)
        findings = inspection.findings.result(30)
        assert place.inspections.known(sha256)
        assert inspection.done == inspection.total == len(made.manifest.targets)
        assert place.find(first) is findings
        assert place.find(again) is findings
        assert place.find(first, again) is not findings

    def test_findings_are_kept_up_to_a_bound(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "MAX_INSPECTIONS", 2)
        refs = [
            place.publish(random_adapter(place.base, targets=["q_proj"], draw=n), f"pet-{n}")
            for n in range(3)
        ]
        kept = [place.find(ref) for ref in refs]
        assert place.find(refs[2]) is kept[2] and place.find(refs[1]) is kept[1]
        assert place.find(refs[0]) is not kept[0]
        assert place.find(refs[1]) is kept[1]
        assert place.find(refs[2]) is not kept[2]

    def test_an_adapter_of_another_base(self, place: Place) -> None:
        made = random_adapter(place.base)
        foreign = Made(replace(made.manifest, base_fingerprint="f" * 32), made.tensors)
        ref = place.publish(foreign)
        with pytest.raises(InvalidAdapter, match="fingerprint"):
            place.find(ref)
        good = place.publish(made, "good")
        with pytest.raises(InvalidAdapter, match="fingerprint"):
            place.find(good, ref)
        assert place.find(good).layers

    def test_a_broken_or_missing_file(self, place: Place) -> None:
        ref = place.publish(random_adapter(place.base))
        path = place.store.path(ref)
        whole = path.read_bytes()
        path.write_bytes(whole[:-4] + b"\xff\xff\xff\x7f")
        for _ in range(2):  # a failure is not kept
            with pytest.raises(AdapterCorrupt):
                place.find(ref)
        path.write_bytes(whole)
        assert place.find(ref).layers
        with pytest.raises(AdapterNotFound):
            place.inspections.start(AdapterRef("ann", "nobody", 1))

    def test_too_many_at_once_and_the_end(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "MAX_WAITING", 2)
        entered, go_on = threading.Event(), threading.Event()

        def held(*args: object) -> Findings:
            entered.set()
            assert go_on.wait(30)
            return analyse(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(module, "analyse", held)
        refs = [
            place.publish(random_adapter(place.base, targets=["q_proj"], draw=n), f"pet-{n}")
            for n in range(3)
        ]
        running, waiting = (place.inspections.start(ref) for ref in refs[:2])
        assert entered.wait(10)
        assert place.inspections.start(refs[1]) is waiting
        with pytest.raises(QueueFull, match="2 analyses are waiting"):
            place.inspections.start(refs[2])
        closing = threading.Thread(target=place.inspections.close)
        closing.start()
        with pytest.raises(Unavailable):
            while True:
                place.inspections.start(refs[0])
        go_on.set()
        closing.join(10)
        for inspection in (running, waiting):
            with pytest.raises(Unavailable, match="stopping"):
                inspection.findings.result(10)

    def test_its_products_keep_to_one_core(
        self, llama: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """torch's number of threads is per thread, and this one's must not reach the engine's."""
        torch.set_num_threads(2)
        seen: dict[str, int] = {}
        started, go_on = threading.Event(), threading.Event()

        def older() -> None:
            torch.get_num_threads()
            started.set()
            go_on.wait(10)
            seen["older"] = torch.get_num_threads()

        def younger() -> None:
            seen["younger"] = torch.get_num_threads()

        engine = threading.Thread(target=older)
        engine.start()
        started.wait(10)
        place = Place(llama, tmp_path)
        go_on.set()
        late = threading.Thread(target=younger)
        late.start()
        for thread in (engine, late):
            thread.join()
        linear = next(iter(llama.targets.values()))
        monkeypatch.setattr(
            place.inspections, "_weight_norm", lambda _: float(torch.get_num_threads())
        )
        made = random_adapter(llama, targets=[linear.path])
        assert place.find(place.publish(made)).layers[0].weight_norm == 1
        place.inspections.close()
        assert seen == {"older": 2, "younger": 2} and torch.get_num_threads() == 2
