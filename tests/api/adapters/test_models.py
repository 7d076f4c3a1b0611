"""Models and adapters."""

import time
from dataclasses import replace
from pathlib import Path

import openai
import pytest

from adapters_store.store import FILE_NAME, AdapterStore
from server.tenancy.principal import DEFAULT_OWNER
from tests.api.fakes import resident_status
from tests.api.running import Publish, Running, Serve


def test_the_base_alone(server: Running) -> None:
    models = server.sdk.models.list().data
    assert [model.id for model in models] == ["base"]
    card = models[0].model_dump()
    assert card["parent"] is None
    assert card["root"] == "tiny"
    assert card["max_model_len"] == server.loop.max_context
    assert server.sdk.models.retrieve("base").model_dump() == card


def test_adapters_are_models_of_the_base(server: Running, publish: Publish) -> None:
    publish("pirate")
    publish("pirate")
    publish("butler")
    publish("secret", owner="somebody-else")
    models = server.sdk.models.list().data
    assert [model.id for model in models] == ["base", "butler", "pirate"]
    assert all(model.model_dump()["parent"] == "base" for model in models[1:])
    assert all(abs(model.created - time.time()) < 60 for model in models[1:])
    assert server.sdk.models.retrieve("pirate").model_dump()["root"] == "pirate@2"
    assert server.sdk.models.retrieve("pirate@1").model_dump()["root"] == "pirate@1"


def test_pages_for_who_asks_for_them(server: Running, publish: Publish) -> None:
    for name in ("a", "b", "c"):
        publish(name)
    first = server.http.get("/v1/models", params={"limit": 2}).json()
    assert [card["id"] for card in first["data"]] == ["base", "a", "b"]
    assert first["has_more"]
    second = server.http.get("/v1/models", params={"limit": 2, "after": "b"}).json()
    assert [card["id"] for card in second["data"]] == ["c"]
    assert not second["has_more"]


def test_ten_thousand_adapters(server: Running, store: AdapterStore, tmp_path: Path) -> None:
    root = tmp_path / "adapters" / DEFAULT_OWNER
    for number in range(10_000):
        version = root / f"user-{number:05}" / "1"
        version.mkdir(parents=True)
        (version / FILE_NAME).touch()
        (version.parent / "latest").write_text("1 1\n")
    started = time.process_time()
    models = server.sdk.models.list().data
    assert time.process_time() - started < 10
    assert len(models) == 10_001
    assert models[-1].id == "user-09999"


@pytest.mark.parametrize("model", ["nobody", "pirate@7", "a/b", "base@1"])
def test_an_unknown_model(server: Running, publish: Publish, model: str) -> None:
    publish("pirate")
    with pytest.raises(openai.NotFoundError) as caught:
        server.sdk.models.retrieve(model)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        server.sdk.models.delete(model)


def test_deleting_all_versions(server: Running, publish: Publish) -> None:
    refs = [publish("pirate"), publish("pirate")]
    gone = server.sdk.models.delete("pirate")
    assert (gone.id, gone.deleted) == ("pirate", True)
    assert [model.id for model in server.sdk.models.list().data] == ["base"]
    assert server.residency.forgotten == refs


def test_deleting_one_version(server: Running, publish: Publish) -> None:
    publish("pirate")
    second = publish("pirate")
    server.sdk.models.delete("pirate@2")
    assert server.sdk.models.retrieve("pirate").model_dump()["root"] == "pirate@1"
    assert server.residency.forgotten == [second]


def test_the_base_stays(server: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="base model cannot be deleted"):
        server.sdk.models.delete("base")


def test_adapters_tell_where_they_are(server: Running, publish: Publish) -> None:
    publish("butler")
    publish("pirate")
    ref = publish("pirate")
    server.residency.residents[ref] = resident_status(ref, slot=3, in_use=2)
    listing = server.http.get("/v1/adapters").json()
    butler, pirate = listing["data"]
    assert (butler["id"], butler["residency"], butler["versions"]) == ("butler", "stored", [1])
    assert (pirate["version"], pirate["versions"]) == (2, [1, 2])
    assert (pirate["residency"], pirate["slot"], pirate["in_use"]) == ("resident", 3, 2)
    assert (pirate["method"], pirate["rank"]) == ("vera", 4)
    assert pirate["bytes"] > 0 and len(pirate["sha256"]) == 64
    assert listing["total"] == 2 and not listing["has_more"]


def test_adapters_come_in_pages(server: Running, publish: Publish) -> None:
    for name in ("a", "b", "c"):
        publish(name)
    first = server.http.get("/v1/adapters", params={"limit": 2}).json()
    assert [entry["id"] for entry in first["data"]] == ["a", "b"]
    assert first["has_more"] and first["last_id"] == "b"
    rest = server.http.get("/v1/adapters", params={"limit": 2, "after": "b"}).json()
    assert [entry["id"] for entry in rest["data"]] == ["c"]
    assert server.http.get("/v1/adapters", params={"limit": 0}).status_code == 400


def test_one_broken_file_hides_no_other(
    server: Running, publish: Publish, store: AdapterStore
) -> None:
    store.path(publish("broken")).write_bytes(b"rubbish")
    publish("pirate")
    broken, pirate = server.http.get("/v1/adapters").json()["data"]
    assert "error" in broken
    assert pirate["method"] == "vera"


def test_one_broken_pointer_hides_no_other(
    server: Running, publish: Publish, store: AdapterStore
) -> None:
    publish("good")
    (store.path(publish("bad")).parent.parent / "latest").write_text("no number")
    assert [model.id for model in server.sdk.models.list().data] == ["base", "good"]
    listed = server.http.get("/v1/adapters").json()["data"]
    assert [entry["id"] for entry in listed] == ["good"]
    for ask, path in (
        (server.http.get, "/v1/models/bad"),
        (server.http.delete, "/v1/models/bad@1"),
    ):
        answer = ask(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "adapter_corrupt")
        assert "delete the adapter 'bad' whole" in answer.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["models", "adapters"])
def test_what_has_a_broken_pointer_can_be_deleted(
    server: Running, publish: Publish, store: AdapterStore, kind: str
) -> None:
    ref = publish("bad")
    (store.path(ref).parent.parent / "latest").write_text("no number")
    assert server.http.delete(f"/v1/{kind}/bad").json()["deleted"]
    assert store.names(ref.owner) == []
    assert server.residency.forgotten == [ref]
    assert server.http.delete(f"/v1/{kind}/bad").status_code == 404


def test_pinning(server: Running, publish: Publish) -> None:
    publish("pirate")
    assert server.http.post("/v1/adapters/pirate/pin").json()["pinned"]
    assert server.http.get("/v1/adapters/pirate@1").json()["pinned"]
    assert not server.http.post("/v1/adapters/pirate/unpin").json()["pinned"]
    assert server.http.post("/v1/adapters/nobody/pin").status_code == 404
    assert server.http.post("/v1/adapters/base/pin").status_code == 400


def test_deleting_an_adapter(server: Running, publish: Publish) -> None:
    publish("pirate")
    assert server.http.delete("/v1/adapters/pirate").json()["deleted"]
    assert server.http.get("/v1/adapters/pirate").status_code == 404


class TestTheBasesName:
    """An adapter of that name can no longer be made. One may be there from before."""

    @pytest.mark.parametrize("name", ["base", "Base", "BASE"])
    def test_no_adapter_can_be_imported_under_it(self, server: Running, name: str) -> None:
        answer = server.http.post(
            "/v1/adapters/import",
            data={"name": name},
            files={"config": b"{}", "weights": ("adapter_model.safetensors", b"")},
        )
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "name")
        assert f"{name!r} is the base model's id" in error["message"]
        assert server.services.adapters.names(DEFAULT_OWNER) == []

    def test_one_that_is_there_is_listed_and_answers_as_a_version(
        self, server: Running, publish: Publish
    ) -> None:
        for name in ("base-camp", "base", "base", "butler"):
            publish(name)
        ids = [model.id for model in server.sdk.models.list().data]
        assert ids == ["base", "base@2", "base-camp", "butler"]
        for model_id in ids:
            answer = server.sdk.chat.completions.create(
                model=model_id, messages=[{"role": "user", "content": "?"}]
            )
            asked = server.loop.asked[-1].adapter
            root = server.sdk.models.retrieve(model_id).model_dump()["root"]
            assert (asked is None) is (model_id == "base")
            assert answer.model == ("base" if asked is None else root == str(asked) and root)
        listed = server.http.get("/v1/adapters").json()
        assert [entry["id"] for entry in listed["data"]] == ["base@2", "base-camp", "butler"]
        page = server.http.get("/v1/adapters", params={"after": "base@2"}).json()
        assert [entry["id"] for entry in page["data"]] == ["base-camp", "butler"]

    def test_one_that_is_there_can_be_deleted(self, server: Running, publish: Publish) -> None:
        publish("base")
        publish("base")
        with pytest.raises(openai.BadRequestError, match="base model cannot be deleted"):
            server.sdk.models.delete("base")
        assert server.http.delete("/v1/adapters/base@1").status_code == 200
        assert server.http.delete("/v1/adapters/base").json()["deleted"]
        assert server.services.adapters.names(DEFAULT_OWNER) == []
        refused = server.http.delete("/v1/adapters/base")
        assert refused.status_code == 400 and "base model" in refused.json()["error"]["message"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a@1", "a b", "ö", "-a", "a.", "a" * 65])
def test_a_name_that_no_url_carries_is_refused(server: Running, name: str) -> None:
    answer = server.http.post(
        "/v1/adapters/import",
        data={"name": name},
        files={"config": b"{}", "weights": ("adapter_model.safetensors", b"")},
    )
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "name"


@pytest.mark.parametrize("name", ["import", "export", "analysis", "pin", "base.1", "con", "1"])
def test_names_that_are_also_words_of_paths(server: Running, publish: Publish, name: str) -> None:
    publish(name)
    assert server.sdk.models.retrieve(name).model_dump()["root"] == f"{name}@1"
    assert server.http.get(f"/v1/adapters/{name}").json()["version"] == 1
    assert server.http.post(f"/v1/adapters/{name}/pin").status_code == 200
    assert server.http.get(f"/v1/adapters/{name}/export").status_code == 200
    assert server.http.delete(f"/v1/adapters/{name}").json()["deleted"]


def test_names_that_the_file_system_holds_to_be_one(
    server: Running, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that ignores capital letters does."""
    publish("pirate")
    store = server.services.adapters
    exact = store.versions
    monkeypatch.setattr(store, "versions", lambda owner, name: exact(owner, name.lower()))
    answer = server.http.post(
        "/v1/adapters/import",
        data={"name": "Pirate"},
        files={"config": b"{}", "weights": ("adapter_model.safetensors", b"")},
    )
    assert answer.status_code == 400 and "only in capital letters" in answer.text


def test_a_name_that_differs_only_in_capital_letters_is_taken(
    server: Running, publish: Publish
) -> None:
    publish("pirate")
    file = server.sdk.files.create(file=("a.jsonl", b"{}"), purpose="fine-tune").id
    with pytest.raises(openai.BadRequestError, match="of the adapter 'pirate' only in capital"):
        server.sdk.fine_tuning.jobs.create(model="base", training_file=file, suffix="Pirate")


def test_a_base_with_a_slash_is_never_an_owners_adapter(serve: Serve, publish: Publish) -> None:
    publish("Qwen3")
    base = replace(serve().services.base, id="default/Qwen3")
    server = serve(base=base)
    assert server.sdk.models.retrieve("default/Qwen3").model_dump()["parent"] is None
    for adapter in ("Qwen3", "default/Qwen3@1"):
        card = server.sdk.models.retrieve(adapter)
        assert card.model_dump()["parent"] == "default/Qwen3"
    with pytest.raises(openai.BadRequestError):
        server.sdk.models.delete("default/Qwen3")
