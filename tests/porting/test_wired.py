"""Through a real server: files over HTTP, answers from the engine, and a folder back."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from adapters_store.store import AdapterStore
from clients.python import ApiError, Client
from server.__main__ import main
from server.app import create_app
from server.config import Settings
from server.metrics import Metrics
from server.tenancy.principal import DEFAULT_OWNER
from server.wiring.building import open_records
from server.wiring.front import running_front
from server.wiring.front_services import wire
from tests.api.running import eventually, hosting
from tests.porting.peft_side import (
    TOKENS,
    adapted,
    change,
    loaded_logits,
    logits,
    lora,
    randlora,
    save,
    vera,
)

MODEL = {"max_position_embeddings": 512}  # that of `model_folder`


@pytest.fixture(scope="module")
def client(
    model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Client, Path]]:
    """A client, and the server's home."""
    home = tmp_path_factory.mktemp("home")
    settings = Settings(home=home, model=str(model_folder), dtype="float32", kv_memory_mb=16)
    metrics, threads = Metrics("base"), torch.get_num_threads()
    with (
        open_records(settings) as records,
        running_front(settings, records, metrics, lambda text: None) as front,
        hosting() as host,
        Client(host.url) as client,
    ):
        host.app = create_app(wire(settings, records, front, metrics, None))
        yield client, home
    torch.set_num_threads(threads)


def scores(client: Client, model: str) -> Tensor:
    """The log-probability of each token of TOKENS but the first."""
    body: dict[str, Any] = {"prompt": TOKENS.tolist(), "max_tokens": 0, "echo": True, "logprobs": 1}
    answer = client._server.json("POST", "/v1/completions", json={"model": model, **body})
    return torch.tensor(answer["choices"][0]["logprobs"]["token_logprobs"][1:])


def scored(answer: Tensor) -> Tensor:
    return answer.log_softmax(-1)[:-1].gather(1, TOKENS[1:, None]).flatten()


@pytest.mark.parametrize(
    ("name", "config"),
    [("v", vera(save_projection=False)), ("r", randlora()), ("l", lora(use_rslora=True))],
)
def test_there_and_back(
    name: str, config: Any, client: tuple[Client, Path], tmp_path: Path
) -> None:
    server, home = client
    peft = adapted("llama", config, **MODEL)
    want = scored(logits(peft))
    entry = server.import_adapter(save(peft, tmp_path / "theirs"), name)
    assert entry.id == f"{name}@1"
    assert_close(scores(server, name), want, rtol=1e-4, atol=2e-4)
    server.export_adapter(name, tmp_path / "ours")
    assert_close(
        scored(loaded_logits("llama", tmp_path / "ours", **MODEL)), want, atol=2e-4, rtol=0
    )
    merged = server.export_adapter(name, tmp_path / "merged", "merged")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in merged}
    assert eventually(lambda: not [*(home / "porting").iterdir()])


def test_a_name_and_its_versions_mean_the_same_everywhere(
    client: tuple[Client, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the first version is a checkpoint of a job, which the bare name skips."""
    server, home = client
    store = AdapterStore(home / "adapters")
    want: dict[str, Tensor] = {}
    for version, alpha in (("c@1", 8), ("c@2", 32)):
        peft = adapted("llama", lora(lora_alpha=alpha), **MODEL)
        want[version] = scored(logits(peft))
        name = f"made-{alpha}"
        server.import_adapter(save(peft, tmp_path / name), name)
        manifest, tensors, _ = store.load(store.resolve(DEFAULT_OWNER, name))
        store.publish(DEFAULT_OWNER, "c", manifest, tensors, latest=version == "c@2")
    want["c"] = want["c@2"]
    assert (want["c@1"] - want["c@2"]).abs().max() > 1e-2
    for model_id, exact in want.items():
        assert_close(scores(server, model_id), exact, rtol=1e-4, atol=2e-4)
        out = tmp_path / f"out-{model_id}"
        assert main(["export", model_id, "--out", str(out), "--url", server.base_url]) == 0
        told = capsys.readouterr().err
        assert ("c@1 is a checkpoint of a job; c is c@2" in told) is (model_id == "c@1")
        assert_close(scored(loaded_logits("llama", out, **MODEL)), exact, atol=2e-4, rtol=0)
        number = 1 if model_id == "c@1" else 2
        assert server.adapter(model_id).version == number
        assert server.analysis(model_id).id == f"c@{number}"
    assert server.models().count("c") == 1 and "c@1" not in server.models()
    assert server.import_adapter(tmp_path / "made-8", "c").id == "c@3"
    assert_close(scores(server, "c"), want["c@1"], rtol=1e-4, atol=2e-4)


def test_an_update_that_overflows_only_when_asked(
    client: tuple[Client, Path], tmp_path: Path
) -> None:
    """Its answer says not to ask again, and other answers in the batch go on."""
    server, _ = client
    folder = save(adapted("llama", lora(target_modules="all-linear"), **MODEL), tmp_path / "big")
    change(folder, lambda tensors: [tensor.fill_(1e9) for tensor in tensors.values()])
    server.import_adapter(folder, "big")
    sdk = openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="any", max_retries=3)
    for _ in range(2):
        with pytest.raises(openai.BadRequestError, match="big@1: the logits are not") as refusal:
            sdk.completions.create(model="big", prompt=TOKENS.tolist(), max_tokens=4)
        assert refusal.value.code == "adapter_not_finite"
    assert sdk.completions.create(model="base", prompt=TOKENS.tolist(), max_tokens=4).choices


def test_a_stored_adapter_that_is_not_finite(client: tuple[Client, Path], tmp_path: Path) -> None:
    server, home = client
    store = AdapterStore(home / "adapters")
    server.import_adapter(save(adapted("llama", lora(), **MODEL), tmp_path / "fine"), "fine")
    manifest, tensors, _ = store.load(store.resolve(DEFAULT_OWNER, "fine"))
    name = next(name for name in tensors if name.endswith("q_proj.A"))
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[0] = float("nan")
    store.publish(DEFAULT_OWNER, "nan", manifest, tensors)
    store.publish(
        DEFAULT_OWNER,
        "wide",
        replace(manifest, scale=1e38),
        store.load(store.resolve(DEFAULT_OWNER, "fine"))[1],
    )
    sdk = openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="any", max_retries=0)
    for model_id, said in (("nan", rf"'{name}' holds a value that is not"), ("wide", "overflows")):
        with pytest.raises(openai.BadRequestError, match=said) as refusal:
            sdk.completions.create(model=model_id, prompt=TOKENS.tolist(), max_tokens=4)
        assert refusal.value.code == "adapter_not_finite"


def test_a_refusal_over_http_leaves_nothing(client: tuple[Client, Path], tmp_path: Path) -> None:
    server, home = client
    folder = save(adapted("llama", vera(), **MODEL), tmp_path / "theirs")
    change(folder, lambda tensors: tensors["base_model.vera_A"].view(-1)[:1].fill_(float("nan")))
    before = sorted(home.rglob("*"))
    with pytest.raises(ApiError, match=r"'base_model\.vera_A' holds a value that is not finite"):
        server.import_adapter(folder, "broken")
    assert sorted(home.rglob("*")) == before
