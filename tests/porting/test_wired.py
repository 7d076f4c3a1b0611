"""Through a real server: files over HTTP, answers from the engine, and a folder back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from clients.python import ApiError, Client
from server.app import create_app
from server.config import Settings
from server.metrics import Metrics
from server.wiring.building import open_records
from server.wiring.front import running_front, wire
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


def test_a_refusal_over_http_leaves_nothing(client: tuple[Client, Path], tmp_path: Path) -> None:
    server, home = client
    folder = save(adapted("llama", vera(), **MODEL), tmp_path / "theirs")
    change(folder, lambda tensors: tensors["base_model.vera_A"].view(-1)[:1].fill_(float("nan")))
    before = sorted(home.rglob("*"))
    with pytest.raises(ApiError, match=r"'base_model\.vera_A' holds a value that is not finite"):
        server.import_adapter(folder, "broken")
    assert sorted(home.rglob("*")) == before
