"""RandLoRA's variants, as a manifest's options tell of them."""

import pytest

from server.adapters.methods.randlora.randlora import RANDLORA, RandLora
from server.bases.seeded_matrices import SPEC
from server.errors import InvalidAdapter
from tests.adapters.methods.test_randlora import linear


@pytest.mark.parametrize(
    ("options", "method", "spec"),
    [
        ({}, RandLora(), SPEC),
        ({"sparsity": "dense", "dropout": "0.1"}, RandLora(), SPEC),
        ({"sparsity": "3"}, RandLora(sparsity=3), "philox4x64-10/t43/v1"),
        ({"sparsity": "6"}, RandLora(sparsity=6), "philox4x64-10/t21/v1"),
        ({"sparsity": repr(384**0.5)}, RandLora(sparsity=384**0.5), "philox4x64-10/t7/v1"),
        ({"pairing": "peft"}, RandLora(pairing="peft"), SPEC),
    ],
)
def test_its_options_are_read_back(options: dict[str, str], method: RandLora, spec: str) -> None:
    read = RandLora.of(options)
    assert read == method
    assert RandLora.of(read.options) == read
    assert read.basis(9).spec == spec
    assert read.basis(9).pairing == options.get("pairing", "")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sparsity", "sqrt"),
        ("sparsity", "1"),
        ("sparsity", "nan"),
        ("sparsity", ""),
        ("pairing", "other"),
    ],
)
def test_options_that_name_nothing_are_refused(key: str, value: str) -> None:
    with pytest.raises(InvalidAdapter, match=rf"{key} .*{value}"):
        RandLora.of({key: value})


def test_sqrt_stands_for_the_widest_narrow_side() -> None:
    linears = [linear(384, 1024), linear(400, 400), linear(4000, 9)]
    assert RANDLORA.settled({"sparsity": "sqrt"}, linears) == {"sparsity": 20}
    assert RANDLORA.settled({"sparsity": 6}, linears) == {"sparsity": 6}
