"""Files: what is written is read back, and nothing else is."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from adapters_store import weights
from adapters_store.manifest import Manifest
from adapters_store.store_errors import AdapterCorrupt
from tests.adapters_store.conftest import MakeManifest, MakeTensors

Entries = dict[str, dict[str, object]]


def _equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.fixture
def adapter(tmp_path: Path, make_manifest: MakeManifest, make_tensors: MakeTensors) -> Path:
    path = tmp_path / "adapter.safetensors"
    weights.write(path, make_manifest(), make_tensors())
    return path


def _rewrite(path: Path, change: Callable[[Entries], object]) -> None:
    """Change the header, keep the data."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8 : 8 + length])
    change(entries)
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def test_a_field_of_zeros_is_not_taken_for_the_checksum(
    tmp_path: Path, make_manifest: MakeManifest, make_tensors: MakeTensors
) -> None:
    path = tmp_path / "adapter.safetensors"
    manifest = replace(make_manifest(note="0" * 64), basis_sha256="0" * 64)
    weights.write(path, manifest, make_tensors())
    assert weights.read_content(path).header.manifest == manifest


def test_a_file_reads_back(
    adapter: Path, make_manifest: MakeManifest, make_tensors: MakeTensors
) -> None:
    content = weights.read_content(adapter)
    tensors, header = content.tensors(), weights.read_header(adapter)
    assert make_manifest() == header.manifest
    assert _equal(tensors, make_tensors())
    assert header.size_bytes == adapter.stat().st_size
    assert content.header == header


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.dictionaries(
        st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
        st.lists(st.integers(1, 5), max_size=3),
        min_size=1,
        max_size=5,
    )
)
def test_the_safetensors_library_reads_the_same(
    tmp_path: Path, make_manifest: MakeManifest, shapes: dict[str, list[int]]
) -> None:
    path = tmp_path / "any.safetensors"
    path.unlink(missing_ok=True)
    manifest = make_manifest(note="ünïcode \N{SNOWMAN}")
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    weights.write(path, manifest, tensors)
    assert _equal(safetensors.torch.load_file(path), tensors)
    with safe_open(path, "pt") as file:
        assert Manifest.from_header(file.metadata()) == manifest
    assert _equal(weights.read_content(path).tensors(), tensors)


def test_the_same_content_has_the_same_bytes_and_any_other_has_another_hash(
    tmp_path: Path, make_manifest: MakeManifest, make_tensors: MakeTensors
) -> None:
    tensors = make_tensors()
    backwards = dict(reversed(tensors.items()))
    for name, manifest, content in (
        ("a", make_manifest(), tensors),
        ("b", make_manifest(), backwards),
        ("c", make_manifest(rank=5), tensors),
        ("d", make_manifest(), make_tensors(seed=1)),
    ):
        weights.write(tmp_path / name, manifest, content)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert len({weights.read_header(tmp_path / name).sha256 for name in "acd"}) == 3


def test_a_file_is_never_overwritten(
    adapter: Path, make_manifest: MakeManifest, make_tensors: MakeTensors
) -> None:
    before = adapter.read_bytes()
    with pytest.raises(FileExistsError):
        weights.write(adapter, make_manifest(), make_tensors(seed=9))
    assert adapter.read_bytes() == before


@pytest.mark.parametrize(
    "tensors", [{}, {"q.d": torch.zeros(3, dtype=torch.float64)}, {"q.d": torch.zeros(0)}]
)
def test_only_float32_is_written(
    tmp_path: Path, make_manifest: MakeManifest, tensors: dict[str, Tensor]
) -> None:
    with pytest.raises(ValueError, match=r"tensors|float32"):
        weights.write(tmp_path / "x", make_manifest(), tensors)
    assert not (tmp_path / "x").exists()


def test_every_truncation_is_refused(adapter: Path) -> None:
    whole = adapter.read_bytes()
    for length in range(0, len(whole), 7):
        adapter.write_bytes(whole[:length])
        for read in (weights.read_content, weights.read_header):
            with pytest.raises(AdapterCorrupt, match=str(adapter)):
                read(adapter)


def test_a_truncated_tensor_is_named(adapter: Path) -> None:
    adapter.write_bytes(adapter.read_bytes()[:-1])
    with pytest.raises(
        AdapterCorrupt, match=r"truncated: tensor .*layers\.1\.self_attn\.q_proj\.d"
    ):
        weights.read_content(adapter)


def test_every_flipped_bit_is_refused(adapter: Path) -> None:
    whole = adapter.read_bytes()
    for index in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[index] ^= 1 << (index % 8)
        adapter.write_bytes(damaged)
        with pytest.raises(AdapterCorrupt, match=str(adapter)):
            weights.read_content(adapter)


def test_added_bytes_are_refused(adapter: Path) -> None:
    adapter.write_bytes(adapter.read_bytes() + b"\0" * 4)
    with pytest.raises(AdapterCorrupt, match="bytes of data"):
        weights.read_content(adapter)


Q0D = "model.layers.0.self_attn.q_proj.d"
Q1B = "model.layers.1.self_attn.q_proj.b"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dtype", "F16", "F16"),
        ("shape", [3], "does not fit"),
        ("shape", [-4], "no valid shape"),
        ("shape", [True, 4], "no valid shape"),
        ("shape", None, "no valid shape"),
        ("data_offsets", [0], "no valid shape"),
        ("data_offsets", [24, 24], "does not fit"),
        ("data_offsets", [28, 44], "begin where"),
        ("data_offsets", [26, 42], "does not fit"),
    ],
)
def test_a_misshapen_tensor_is_named(
    adapter: Path, field: str, value: object, message: str
) -> None:
    def change(entries: Entries) -> None:
        entries[Q0D][field] = value

    _rewrite(adapter, change)
    with pytest.raises(AdapterCorrupt, match=message) as raised:
        weights.read_header(adapter)
    assert str(adapter) in str(raised.value)
    assert Q0D in str(raised.value)


def test_a_tensor_missing_from_the_header_is_noticed(adapter: Path) -> None:
    _rewrite(adapter, lambda entries: entries.pop(Q1B))
    with pytest.raises(AdapterCorrupt, match="begin where"):
        weights.read_header(adapter)


def test_a_missing_manifest_field_is_named(adapter: Path) -> None:
    _rewrite(adapter, lambda entries: entries["__metadata__"].pop("basis_spec"))
    with pytest.raises(AdapterCorrupt, match="basis_spec") as raised:
        weights.read_header(adapter)
    assert str(adapter) in str(raised.value)


def test_an_older_header_lets_the_template_write_its_prompt(adapter: Path) -> None:
    _rewrite(adapter, lambda entries: entries["__metadata__"].pop("default_prompt"))
    assert weights.read_header(adapter).manifest.default_prompt is True


@pytest.mark.parametrize("field", ["targets", "options", "rank", "created_at", "default_prompt"])
def test_a_manifest_field_of_the_wrong_type_is_named(adapter: Path, field: str) -> None:
    def change(entries: Entries) -> None:
        entries["__metadata__"][field] = '["a", 3]' if field == "targets" else '{"a": 3}'

    _rewrite(adapter, change)
    with pytest.raises(AdapterCorrupt, match=field):
        weights.read_header(adapter)


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path, make_tensors: MakeTensors) -> None:
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file(make_tensors(), path)
    with pytest.raises(AdapterCorrupt, match="__metadata__"):
        weights.read_content(path)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"\xff" * 40, b"[" * 200_000])
def test_any_other_file_is_refused(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(len(body).to_bytes(8, "little") + body)
    with pytest.raises(AdapterCorrupt, match="other"):
        weights.read_content(path)


def test_files_of_one_kind_share_a_table(
    tmp_path: Path, make_manifest: MakeManifest, make_tensors: MakeTensors
) -> None:
    tables = []
    for name, tensors, note in (
        ("a", make_tensors(), "of one"),
        ("b", make_tensors(seed=1), "and of another length"),
        ("c", make_tensors(rank=5), "of one"),
    ):
        weights.write(tmp_path / name, make_manifest(note=note), tensors)
        content = weights.read_content(tmp_path / name)
        assert _equal(content.tensors(), tensors)
        tables.append(content.table)
    assert tables[0] is tables[1]
    assert tables[2].shapes != tables[0].shapes


def test_what_one_file_said_is_not_taken_for_another_s(
    adapter: Path, make_tensors: MakeTensors
) -> None:
    assert _equal(weights.read_content(adapter).tensors(), make_tensors())
    raw = adapter.read_bytes()
    for end in (len(raw) - 4, len(raw) - len(raw) % 4 - 25):
        adapter.write_bytes(raw[:end])
        with pytest.raises(AdapterCorrupt, match="truncated: tensor"):
            weights.read_content(adapter)
    altered = raw.replace(b'"shape":[4]', b'"shape":[5]', 1)
    assert altered != raw
    adapter.write_bytes(altered)
    with pytest.raises(AdapterCorrupt, match="does not fit"):
        weights.read_content(adapter)


def test_metadata_stands_in_a_header_once(adapter: Path) -> None:
    raw = adapter.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    text = raw[8 : 8 + length].rstrip()
    for again in (b',"__metadata__":{}}', b',"__metadat\\u0061__":{"rank":"4"}}'):
        twice = text[:-1] + again
        adapter.write_bytes(len(twice).to_bytes(8, "little") + twice + raw[8 + length :])
        with pytest.raises(AdapterCorrupt, match="'__metadata__' is None"):
            weights.read_content(adapter)


def test_a_porch_sized_adapter_loads_in_milliseconds(
    tmp_path: Path, make_manifest: MakeManifest, make_tensors: MakeTensors
) -> None:
    path = tmp_path / "porch.safetensors"
    weights.write(path, make_manifest(), make_tensors(layers=62, rank=128, out=560))
    times = []
    for _ in range(21):
        start = time.perf_counter()
        weights.read_content(path)
        times.append(time.perf_counter() - start)
    assert statistics.median(times) < 0.010  # measured: about 0.6 ms; the rest is for slow machines
