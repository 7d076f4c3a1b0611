"""Reading and writing checkpoint folders: safetensors alone, every fault named."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters_store.peft.folder import check_file_name, open_tensors, write_folder
from adapters_store.store_errors import InvalidCheckpoint


@pytest.mark.parametrize("name", ["adapter_model.bin", "ADAPTER.PT", "x.pkl", "x.ckpt", "x.pth"])
def test_pickles_are_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidCheckpoint, match=rf"{name!r} is a pickle.*save it again"):
        check_file_name(name)


def test_other_names_are_refused() -> None:
    check_file_name("adapter_model.safetensors")
    with pytest.raises(InvalidCheckpoint, match=r"'weights.npz' is no safetensors file"):
        check_file_name("weights.npz")


def test_a_pickle_under_another_name_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (tmp_path.joinpath("trapped").touch, ())

    path = tmp_path / "adapter_model.safetensors"
    for content in (pickle.dumps(Trap()), b"", b"\xff" * 64):
        path.write_bytes(content)
        with (
            pytest.raises(InvalidCheckpoint, match="no whole safetensors file"),
            open_tensors(path),
        ):
            raise AssertionError("opened")
    torch.save({"x": torch.zeros(1)}, path)
    with pytest.raises(InvalidCheckpoint, match="no whole safetensors file"), open_tensors(path):
        raise AssertionError("opened")
    assert not (tmp_path / "trapped").exists()


def write(path: Path, **tensors: Tensor) -> Path:
    save_file(tensors, path)
    return path


def test_tensors_are_read_as_float32(tmp_path: Path) -> None:
    want = torch.tensor([[0.5, -2.0]])
    path = write(tmp_path / "x", f=want, h=want.half(), b=want.bfloat16())
    with open_tensors(path) as tensors:
        assert tensors.names == {"f", "h", "b"}
        for name in "fhb":
            assert tensors.shape(name) == (1, 2)
            read = tensors.read(name, (1, 2))
            assert read.dtype == torch.float32 and torch.equal(read, want)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent", "tensor 'absent' is missing"),
        ("nan", "tensor 'nan' holds a value that is not finite"),
        ("inf", "tensor 'inf' holds a value that is not finite"),
        ("int", "tensor 'int' is I8, not one of F32, F16, BF16"),
        ("wide", "tensor 'wide' is F64"),
        ("long", r"tensor 'long' has shape \[3\], not \[2\]"),
    ],
)
def test_faults_are_named(name: str, said: str, tmp_path: Path) -> None:
    path = write(
        tmp_path / "x",
        nan=torch.tensor([1.0, float("nan")]),
        inf=torch.tensor([1.0, float("inf")]).half(),
        int=torch.zeros(2, dtype=torch.int8),
        wide=torch.zeros(2, dtype=torch.float64),
        long=torch.zeros(3),
    )
    with open_tensors(path) as tensors, pytest.raises(InvalidCheckpoint, match=said):
        tensors.read(name, (2,))


def test_a_written_folder(tmp_path: Path) -> None:
    write_folder(tmp_path, {"peft_type": "LORA", "r": 2}, {"x": torch.arange(6.0).view(2, 3).t()})
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == {
        "peft_type": "LORA",
        "r": 2,
    }
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert torch.equal(tensors["x"], torch.arange(6.0).view(2, 3).t())
