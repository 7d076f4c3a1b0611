"""The model in this process, without a server: on a tiny random base, and the example on Porch."""

import json
import runpy
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from adapters_store.store import AdapterStore
from server.api.completions import chat_completion, text_completion
from server.api.completions.chat_completion import ChatRequest
from server.api.completions.generation import CheckedRequest
from server.api.completions.text_completion import CompletionRequest
from server.bases.base_files import load_base
from server.bases.model import BaseModel
from server.engine.sequence import FinishReason
from server.errors import ContextLengthExceeded, InvalidRequest, ModelNotFound, Unavailable
from server.scheduler.request import CallbackListener, TextDelta
from server.tenancy.principal import DEFAULT_OWNER
from server.wiring.llm import LLM
from tests.adapters.made import make_adapter
from tests.api.running import eventually

EXAMPLE = Path(__file__).parents[2] / "examples" / "in_process.py"
HELLO = [{"role": "user", "content": "Hello"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}


def publish(base: BaseModel, home: Path) -> None:
    made = make_adapter(base)
    AdapterStore(home / "adapters").publish(DEFAULT_OWNER, "pirate", made.manifest, made.tensors)


@pytest.fixture(scope="module")
def llm(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    home, threads = tmp_path_factory.mktemp("home"), torch.get_num_threads()
    publish(load_base(str(model_folder), device="cpu", dtype=torch.float32), home)
    with LLM(str(model_folder), home=home, kv_memory_mb=8, adapter_slots=8) as llm:
        yield llm
    torch.set_num_threads(threads)


def finish(llm: LLM, checked: CheckedRequest) -> tuple[FinishReason | None, int]:
    """How an answer ends, and its number of tokens."""
    updates: SimpleQueue[TextDelta] = SimpleQueue()
    llm._services.engine.submit(checked.generations[0], CallbackListener(updates.put))
    tokens = 0
    while True:
        update = updates.get(timeout=30)
        tokens += len(update.tokens)
        if update.finish is not None:
            return update.finish, tokens


def test_answers_end_where_tokenizer_and_template_say(model_folder: Path, tmp_path: Path) -> None:
    """The base's own files name no end. The template closes a turn with <pad>."""
    folder, threads = tmp_path / "tiny", torch.get_num_threads()
    shutil.copytree(model_folder, folder)
    for name in ("config.json", "generation_config.json"):
        fields = json.loads((folder / name).read_text()) | {"eos_token_id": None}
        (folder / name).write_text(json.dumps(fields))
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("</s>", "<pad>"))
    with LLM(str(folder), home=tmp_path, kv_memory_mb=8, adapter_slots=8) as llm:

        def ended(likely: int) -> list[tuple[FinishReason | None, int]]:
            fields = {"model": "base", "max_tokens": 3, "logit_bias": {str(likely): 100}}
            chat = ChatRequest.model_validate(fields | {"messages": HELLO})
            text = CompletionRequest.model_validate(fields | {"prompt": ""})
            return [
                finish(llm, chat_completion.check_request(llm._services, DEFAULT_OWNER, chat)),
                finish(llm, text_completion.check_request(llm._services, DEFAULT_OWNER, text)),
            ]

        stopped, cut = (FinishReason.STOP, 1), (FinishReason.LENGTH, 3)
        assert ended(2) == [stopped, stopped]  # </s>
        assert ended(0) == [stopped, cut]  # <pad>
        assert ended(50) == [cut, cut]
    torch.set_num_threads(threads)


def test_a_home_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="missing' is no folder: name one that a server used"):
        LLM("porch", home=tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


def test_a_stream_joins_to_the_whole_answer(llm: LLM) -> None:
    texts = list(llm.stream(HELLO, **GREEDY))
    assert len(texts) > 1
    assert "".join(texts) == llm.chat(HELLO, **GREEDY)


def test_an_adapter_answers_in_its_own_way(llm: LLM) -> None:
    assert llm.adapters == ["pirate"]
    answer = llm.chat(HELLO, adapter="pirate", **GREEDY)
    assert answer == llm.chat(HELLO, adapter="pirate@1", **GREEDY) != llm.chat(HELLO, **GREEDY)


def test_a_text_is_continued(llm: LLM) -> None:
    assert llm.generate("Hello", **GREEDY) == llm.generate("Hello", **GREEDY) != ""


def test_threads_share_a_batch(llm: LLM) -> None:
    alone = llm.chat(HELLO, **GREEDY)
    answers: list[str] = []
    threads = [
        threading.Thread(target=lambda: answers.append(llm.chat(HELLO, **GREEDY))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [alone] * 4


def test_what_cannot_be_answered(llm: LLM) -> None:
    with pytest.raises(ModelNotFound, match="'parrot' does not exist"):
        llm.chat(HELLO, adapter="parrot")
    with pytest.raises(ContextLengthExceeded) as long:
        llm.chat([{"role": "user", "content": "a b " * 9999}], max_tokens=9999)
    assert long.value.param == "messages"
    with pytest.raises(InvalidRequest, match="leave it out"):
        llm.chat(HELLO, n=2)
    with pytest.raises(ValueError, match="temprature"):
        llm.chat(HELLO, temprature=0)


def test_an_answer_that_is_left_early_is_cancelled(llm: LLM) -> None:
    texts = llm.stream(HELLO, temperature=0, ignore_eos=True)
    next(texts)
    texts.close()
    assert eventually(lambda: llm._services.engine.stats().running == 0)


def test_once_closed_it_answers_nobody(model_folder: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    with LLM(str(model_folder), home=tmp_path, kv_memory_mb=8, adapter_slots=8) as llm:
        assert llm.chat(HELLO, **GREEDY)
    llm.close()
    torch.set_num_threads(threads)
    with pytest.raises(Unavailable):
        llm.chat(HELLO)


def test_the_example_asks_the_base_and_an_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    publish(load_base("porch", device="cpu", dtype=torch.float32), tmp_path)
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(tmp_path)])
    runpy.run_path(str(EXAMPLE))
    torch.set_num_threads(threads)
    base, _, pirate = capsys.readouterr().out.partition("\npirate: ")
    assert base.startswith("base: Dig a hole")
    assert pirate.strip() and pirate.strip() != base.removeprefix("base: ").strip()
