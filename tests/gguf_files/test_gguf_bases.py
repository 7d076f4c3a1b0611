"""A GGUF file is a base model wherever a base model is named."""

import re
from pathlib import Path

import pytest
import torch

from server.adapters.loading import checks
from server.bases import base_folder
from server.bases.base_files import check_config, load_base, load_stored, outline_base
from server.bases.base_folder import label_of, loadable
from server.bases.base_place import locate
from server.bases.gguf_files import gguf_weights
from server.bases.gguf_files.gguf_splits import SPLITS
from server.bases.layer_shape import layer_shape
from server.bases.model import fingerprint_of
from server.bases.tokenizer import load_tokenizer
from server.errors import UnsupportedModel
from tests.gguf_files.making import ARCHS, ROOT, Quant, byte_level_vocab, model_for, write_gguf

HUB = "some/repo-GGUF:sub/m.Q4_0.gguf"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    vocab = byte_level_vocab()
    return write_gguf(tmp_path / "m.Q4_0.gguf", model_for(vocab), vocab, kind=Quant.Q4_0)


def test_every_reader_takes_it(file: Path) -> None:
    for source in (file, str(file)):
        assert locate(source) == file
        check_config(source)
        base, outline = load_base(source, device="cpu"), outline_base(source)
        assert base.name == outline.name == label_of(source) == "m.Q4_0.gguf"
        assert base.fingerprint == fingerprint_of(load_stored(source))
        assert base.targets.keys() == outline.targets.keys()
        assert base.max_context == 256
        assert layer_shape(base) is not None
        assert load_tokenizer(source).decode(load_tokenizer(source).encode("Hi 12")) == "Hi 12"


def test_capital_letters(file: Path) -> None:
    check_config(file.rename(file.with_name("M.GGUF")))


def test_a_file_of_the_hub(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[str, str]]()

    def fetched(repository: str, name: str) -> str:
        asked.append((repository, name))
        return str(file)

    monkeypatch.setattr(base_folder, "hf_hub_download", fetched)
    assert locate(HUB) == HUB
    assert load_base(HUB, device="cpu").name == HUB
    assert load_tokenizer(HUB).name == HUB
    assert set(asked) == {("some/repo-GGUF", "sub/m.Q4_0.gguf")}


def test_what_the_hub_lacks_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(repository: str, name: str) -> str:
        raise OSError("404\nand pages more")

    monkeypatch.setattr(base_folder, "hf_hub_download", fetched)
    with pytest.raises(UnsupportedModel, match="cannot be fetched") as caught:
        loadable(HUB)
    assert "404;" in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        *("missing.gguf", "some/missing.gguf", "/missing/m.gguf", "repo:m.gguf", "a/b:../m.gguf"),
        *("a/b:m.bin", "a/b:", "a/b:m.gguf:x", "a/b/c:m.gguf", "a/b:/m.gguf"),
    ],
)
def test_what_is_not_there_is_refused(source: str) -> None:
    with pytest.raises(UnsupportedModel, match=r"org/repo:file\.gguf"):
        locate(source)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "m.bin"
    other.write_bytes(b"GGUF")
    with pytest.raises(UnsupportedModel, match="is not there"):
        locate(other)


def test_quantisations_are_bases_apart(tmp_path: Path) -> None:
    vocab = byte_level_vocab()
    model = model_for(vocab)
    kinds = (Quant.F32, Quant.BF16, Quant.Q8_0, Quant.Q4_0)
    prints = [
        load_base(write_gguf(tmp_path / f"{kind.name}.gguf", model, vocab, kind=kind), device="cpu")
        for kind in kinds
    ]
    plain = fingerprint_of(model)
    # A fingerprint reads weights in bfloat16, so exact copies are one base.
    assert [base.fingerprint == plain for base in prints] == [True, True, False, False]
    assert len({base.fingerprint for base in prints}) == 3
    assert prints[0].dtype == torch.float32


def test_the_page_names_what_is_read() -> None:
    page = (ROOT / "docs/models.md").read_text().partition("## GGUF files")[2].partition("\n## ")[0]
    assert [name for name in SPLITS if f"`{name}`" not in page] == []
    assert [name for name in ARCHS if f"`{name}`" not in page] == []
    weights = page.partition("- weights in ")[2].partition("- ")[0]
    between = {f"Q{bits}_K" for bits in (3, 4, 5)}
    named = between | set(re.findall(r"[A-Z0-9_]*\d[A-Z0-9_]*", weights))
    assert named == {kind.name for kind in gguf_weights._READ}


def test_the_error_of_another_base_says_that_files_differ() -> None:
    assert "bases apart" in checks._of_files(("some/repo", "m.Q4_0.gguf"))
    assert checks._of_files(("porch", "some/repo")) == ""
