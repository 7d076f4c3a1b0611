"""Headers of weights that are no adapter's: each is refused before anything is made of it."""

import json
import random
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from adapters_store.peft.folder import MAX_HEADER_BYTES, MAX_NAME, MAX_TENSORS, open_tensors
from adapters_store.store_errors import InvalidCheckpoint

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def written(path: Path, header: object, data: bytes = bytes(8), length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    prefix = (len(text) if length is None else length).to_bytes(8, "little")
    path.write_bytes(prefix + text + data)
    return path


def read_all(path: Path) -> dict[str, Any]:
    with open_tensors(path) as tensors:
        return {name: tensors.read(name) for name in tensors.names}


def deep(levels: int) -> bytes:
    return b'{"x":' + b"[" * levels + b"]" * levels + b"}"


def test_a_refusal_quotes_little_of_the_header(tmp_path: Path) -> None:
    path = written(tmp_path / "weights.safetensors", {"x": F32 | {"dtype": "F" * 10**5}})
    with pytest.raises(InvalidCheckpoint, match="pickles are not read") as refused:
        read_all(path)
    assert len(str(refused.value)) < 400


MANY = {f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(8193)}
LARGE = 10**18
REFUSED: dict[str, tuple[object, str]] = {
    "too many": (MANY, f"has 8193 tensors, over the {MAX_TENSORS}"),
    "brackets": (
        b'{"x":[' + b"[]," * 100_000 + b"[]]}",
        "more than .* 57600 lists, objects and keys",
    ),
    "deep": (deep(100), "nested more than 32 deep"),
    "deeper": (deep(12_000), "nested more than 32 deep"),
    "name": ({"n" * 300: F32}, f"name of 300 characters, over the {MAX_NAME}"),
    "twice": (b'{"x":{},"x":{}}', "has the key 'x' twice"),
    "list": ([F32], "header is no JSON object"),
    "text": (b"\xff\xff", "not UTF-8 at byte 1"),
    "nothing": (b"", "not JSON"),
    "digits": (b'{"x":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}', "x|f"),
    "dtype": ({"x": F32 | {"dtype": "F31"}}, "F31"),
    "no dtype": ({"x": {"shape": [2], "data_offsets": [0, 8]}}, "dtype"),
    "odd dtype": ({"x": F32 | {"dtype": 5}}, "header"),
    "integers": ({"x": F32 | {"dtype": "I32"}}, "tensor 'x' is I32, not one of F32, F16, BF16"),
    "wide": ({"x": F32 | {"dtype": "F64", "shape": [1]}}, "tensor 'x' is F64"),
    "negative shape": ({"x": F32 | {"shape": [-2]}}, "header"),
    "odd shape": ({"x": F32 | {"shape": "2"}}, "header"),
    "fraction": ({"x": F32 | {"shape": [2.0]}}, "header"),
    "negative offset": ({"x": F32 | {"data_offsets": [-8, 0]}}, "header"),
    "backwards": ({"x": F32 | {"data_offsets": [8, 0]}}, "header"),
    "three offsets": ({"x": F32 | {"data_offsets": [0, 4, 8]}}, "header"),
    "beyond": ({"x": F32 | {"shape": [4], "data_offsets": [0, 16]}}, "header"),
    "far beyond": ({"x": F32 | {"shape": [LARGE], "data_offsets": [0, 4 * LARGE]}}, "header"),
    "overflow": ({"x": F32 | {"shape": [2**62, 2**62]}}, "header"),
    "wraps to fit": ({"x": F32 | {"shape": [2**63, 2]}}, "header"),
    "gap": ({"x": F32 | {"shape": [1], "data_offsets": [4, 8]}}, "header"),
    "overlap": ({"x": F32, "y": F32}, "header"),
    "not filled": ({"x": F32 | {"shape": [1], "data_offsets": [0, 4]}}, "header"),
    "metadata": ({"__metadata__": {"a": 1}, "x": F32}, "header"),
    "metadata list": ({"__metadata__": [], "x": F32}, "header"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_header(case: str, tmp_path: Path) -> None:
    header, said = REFUSED[case]
    with pytest.raises(InvalidCheckpoint, match=f"(?i)({said})"):
        read_all(written(tmp_path / "x", header))


def test_the_right_one_is_read(tmp_path: Path) -> None:
    metadata = {"format": "pt", "note": "n" * 100_000}
    (tensor,) = read_all(written(tmp_path / "x", {"__metadata__": metadata, "x": F32})).values()
    assert tensor.tolist() == [0, 0]
    names = {f"model.layers.{n}.self_attn.q_proj.lora_A.weight": F32 for n in range(MAX_TENSORS)}
    for n, name in enumerate(names):
        names[name] = F32 | {"shape": [1], "data_offsets": [4 * n, 4 * n + 4]}
    path = written(tmp_path / "y", names, bytes(4 * MAX_TENSORS))
    with open_tensors(path) as tensors:
        assert len(tensors.names) == MAX_TENSORS


@pytest.mark.parametrize("length", [MAX_HEADER_BYTES + 1, 89 * 2**20, 2**40, 2**63, 2**64 - 1])
def test_a_long_header_is_not_read(length: int, tmp_path: Path) -> None:
    """Neither one that is there (a sparse file) nor one that the first bytes only claim."""
    claimed = written(tmp_path / "claimed", b"{}", length=length)
    there = written(tmp_path / "there", b"{", length=length)
    if length < 2**30:
        with there.open("rb+") as file:
            file.truncate(8 + length)
    tracemalloc.start()
    try:
        for path in (claimed, there):
            with pytest.raises(InvalidCheckpoint, match=r"header of|its header is not whole"):
                read_all(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_the_worst_headers_do_not_stop_other_threads(tmp_path: Path) -> None:
    """The longest stretch in which no other thread runs; 50 ms is the aim on an idle machine."""
    size = MAX_HEADER_BYTES - 100
    bodies = {
        "tensors": json.dumps(dict(list(MANY.items())[:MAX_TENSORS])).encode(),
        "texts": b'{"x":[' + b'"",' * (size // 3 - 10) + b'""]}',
        "numbers": b'{"x":[' + b"1," * (size // 2 - 10) + b"1]}",
        "digits": b'{"x":' + b"9" * size + b"}",
        "name": b'{"' + b"n" * size + b'":{}}',
        "escapes": b'{"' + rb"\u0041" * (size // 6) + b'":{}}',
        "brackets": b'{"x":[' + b"[]," * (size // 3 - 10) + b"[]]}",
        "open": b"[" * size,
    }
    gaps, stop = [0.0], threading.Event()

    def probe() -> None:
        last = time.perf_counter()
        while not stop.wait(0.001):
            now = time.perf_counter()
            gaps[-1], last = max(gaps[-1], now - last), now

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    for name, body in bodies.items():
        gaps.append(0.0)
        path = written(tmp_path / name, body, b"")
        if name == "tensors":
            with open_tensors(path) as tensors:
                assert len(tensors.names) == MAX_TENSORS
        else:
            with pytest.raises(InvalidCheckpoint):
                read_all(path)
    stop.set()
    thread.join()
    assert max(gaps) < 0.25, dict(zip(bodies, gaps[1:], strict=True))


def test_random_damage_is_always_named(tmp_path: Path) -> None:
    draw = random.Random(5)
    names = ("a.lora_A.weight", "b")
    good = json.dumps(
        {
            name: {"dtype": "F32", "shape": [2], "data_offsets": [8 * n, 8 * n + 8]}
            for n, name in enumerate(names)
        }
    ).encode()
    outcomes = {"read": 0, "refused": 0}
    for _ in range(600):
        text = bytearray(good)
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(text))
            text[at : at + draw.randint(0, 2)] = draw.choices(b'0129"{}[],:-.eF\\\xffn ', k=1)
        path = written(tmp_path / "x", bytes(text), bytes(16))
        try:
            read_all(path)
            outcomes["read"] += 1
        except InvalidCheckpoint as error:
            assert len(str(error)) > 20
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 5
