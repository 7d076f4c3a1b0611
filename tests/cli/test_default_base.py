"""Which base is served where none is named, and what is said of it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adapters_store.store import AdapterStore
from server.bases import base_files
from server.bases.base_files import load_base
from server.bases.cache_folder import cache_folder
from server.bases.short_names import PREFERRED, SHORT_NAMES, fetched_path, file_of, name_of
from server.config import AUTO, Settings
from server.errors import UnsupportedModel
from server.tenancy.principal import DEFAULT_OWNER
from server.wiring.default_base import with_base
from tests.small_adapters import small_manifest

ROW = SHORT_NAMES[PREFERRED]
PORCH = "1711280e456e98d970ee9da6695a23c3"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("VERANDAH_MODEL")
    return tmp_path / "cache"


@pytest.fixture
def fetched(cache: Path) -> Callable[..., None]:
    """Puts a file of the right size where a fetched model is."""

    def put(_row: object = None) -> None:
        fetched_path(ROW).parent.mkdir(parents=True, exist_ok=True)
        with fetched_path(ROW).open("wb") as file:
            file.truncate(ROW.file_bytes)

    return put


def home_of(folder: Path, *fingerprints: str, owner: str = DEFAULT_OWNER) -> Path:
    store = AdapterStore(folder / "home" / "adapters")
    for number, fingerprint in enumerate(fingerprints):
        manifest = small_manifest(base_name="somebody/else", base_fingerprint=fingerprint)
        store.publish(owner, f"adapter-{number}", manifest, {"q.d": torch.ones(4)})
    return folder / "home"


def chosen(home: Path, **options: str) -> tuple[str, list[str]]:
    said: list[str] = []
    return with_base(Settings(home=home, **options), said.append).model, said  # type: ignore[arg-type]


def test_the_suite_sees_nothing_of_the_users() -> None:
    assert Settings().model == os.environ["VERANDAH_MODEL"] == "porch"
    assert not cache_folder().is_relative_to(Path.home())
    assert not fetched_path(ROW).exists()


def test_a_base_that_is_named_is_taken_without_a_word(tmp_path: Path, cache: Path) -> None:
    home = home_of(tmp_path, PORCH)
    assert chosen(home, model="some/where") == ("some/where", [])


def test_porch_is_taken_until_the_better_one_is_here(
    tmp_path: Path, fetched: Callable[..., None]
) -> None:
    model, said = chosen(tmp_path / "new")
    assert model == "porch"
    assert said == [
        "the base model is porch: no --model was given; for a better one than this toy: "
        f"verandah fetch {PREFERRED}"
    ]
    fetched()
    model, said = chosen(tmp_path / "new")
    assert model == PREFERRED
    assert said == [f"the base model is {PREFERRED}: no --model was given, and this is here"]
    assert not (tmp_path / "new").exists(), "nothing is made in the home"


@pytest.mark.parametrize("owner", [DEFAULT_OWNER, "somebody"])
def test_a_home_stays_with_the_base_of_its_adapters(
    tmp_path: Path, fetched: Callable[..., None], owner: str
) -> None:
    fetched()
    model, said = chosen(home_of(tmp_path, PORCH, owner=owner))
    assert (model, said) == ("porch", ["the base model is porch: the home has adapters of it"])


def test_a_home_whose_base_is_gone_is_told_how_to_get_it(tmp_path: Path, cache: Path) -> None:
    model, said = chosen(home_of(tmp_path, ROW.fingerprint))
    assert model == PREFERRED, "and the check of the settings refuses it, with the remedy"
    assert said == [f"the base model is {PREFERRED}: the home has adapters of it"]


def test_adapters_of_other_bases_are_not_left_out_in_silence(
    tmp_path: Path, fetched: Callable[..., None]
) -> None:
    fetched()
    model, said = chosen(home_of(tmp_path, ROW.fingerprint, PORCH, ROW.fingerprint, "e" * 32))
    assert model == "porch"
    assert said[1:] == [
        f"2 of the home's adapters are of the base {PREFERRED!r} and cannot answer on this one: "
        "give theirs with --model to use them",
        "1 of the home's adapters are of the base 'somebody/else' and cannot answer on this one: "
        "give theirs with --model to use them",
    ]


def test_a_damaged_adapter_does_not_decide(tmp_path: Path, fetched: Callable[..., None]) -> None:
    fetched()
    home = home_of(tmp_path, PORCH)
    next(home.rglob("adapter.safetensors")).write_bytes(b"x")
    assert chosen(home)[0] == PREFERRED


def test_only_a_choice_that_is_open_fetches(
    tmp_path: Path, fetched: Callable[..., None], cache: Path
) -> None:
    new = Settings(home=tmp_path / "new")
    assert new.model == AUTO
    assert with_base(new, lambda _line: None, fetched).model == PREFERRED
    fetched_path(ROW).unlink()
    for settings in (Settings(home=home_of(tmp_path, PORCH)), Settings(model="some/where")):
        with_base(settings, lambda _line: None, fetched)
    assert file_of(ROW) is None


def test_a_short_name_means_its_weights_and_no_others(
    model_folder: Path, fetched: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched()
    monkeypatch.setattr(base_files, "loadable", lambda _source: model_folder)
    with pytest.raises(UnsupportedModel, match="holds other weights than that name means: delete"):
        load_base(PREFERRED, device="cpu")


def test_weights_carry_their_short_name_wherever_they_come_from(tmp_path: Path) -> None:
    folder = Path(base_files.__file__).parent / "porch"
    shutil.copytree(folder, tmp_path / "a-copy")
    assert load_base(tmp_path / "a-copy", device="cpu").name == "porch"


def test_the_fingerprint_of_porch_is_the_one_that_is_known() -> None:
    base = load_base("porch", device="cpu")
    assert (base.fingerprint, name_of(PORCH)) == (PORCH, "porch")
