"""Fakes of the services behind HTTP: no model, no tensors, and every answer is known before."""

import codecs
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch

from adapters_store.manifest import AdapterRef, Manifest
from adapters_store.store import AdapterStore
from server.adapters.adapter_status import AdapterState, AdapterStatus
from server.adapters.inspecting.findings import (
    Comparison,
    Findings,
    LayerFindings,
    LayerSimilarity,
    SpaceSimilarity,
    TrainedVector,
)
from server.engine.sequence import FinishReason, TokenLogprob
from server.errors import InvalidDataset, InvalidRequest, LineProblem
from server.jobs.files.dataset_warnings import dataset_warnings
from server.jobs.files.datasets import Dataset
from server.jobs.files.rendered_example import RenderedExample, RenderedToken
from server.jobs.queue.job_estimate import JobEstimate
from server.jobs.queue.method_spec import MethodSpec, Variant
from server.jobs.queue.train_options import TrainOptions
from server.scheduler.capacity import Capacity
from server.scheduler.intake import Handle
from server.scheduler.request import Generation, Listener, LoopStats, TextDelta, TokenPiece

EOS = 256
VOCAB = 257


def _variant(trained: str | None = None, **options: Any) -> Variant:
    return Variant(trained, 8, 1e-3, "a test", **options)


# The real ones import transformers, which these tests do without.
METHODS = {
    spec.name: spec
    for spec in (
        MethodSpec("vera", (_variant("d+b", basis="shared", d_initial=0.1),), ("d_initial",)),
        MethodSpec("randlora", (_variant(sparsity="dense"),)),
        MethodSpec("lora", (_variant(alpha_per_rank=2.0),)),
    )
}


class ByteStream:
    """Bytes to text, whole characters only."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        return "" if token_id == EOS else self._utf8.decode(bytes([token_id]))

    def unshown(self, token_id: int) -> str:
        return ""

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class ByteTokenizer:
    """A token is a byte; a chat is `role: content` on lines of their own."""

    def prompt(self, text: str) -> list[int]:
        return list(text.encode()) or [EOS]

    def without_default_prompt(self) -> "ByteTokenizer":
        return self

    def chat(
        self,
        messages: Sequence[Mapping[str, object]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        *,
        continues: bool = False,
        settings: Mapping[str, object] | None = None,
    ) -> list[int]:
        assert not tools
        if any(message["content"] == "refuse me" for message in messages):
            raise InvalidRequest("the chat template refuses these messages", param="messages")
        text = "".join(f"{m['role']}: {m['content']}\n" for m in messages)
        return [VOCAB] if "beyond" in text else list(text.encode())

    def reads(self, name: str) -> bool:
        return False

    def pieces(self, text: str) -> list[str]:
        pieces = [piece for char in text for piece in [*[""] * (len(char.encode()) - 1), char]]
        return pieces or [text]

    def stream(self, *, skip_special: bool = True) -> ByteStream:
        return ByteStream()

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return b"" if token_id == EOS else bytes([token_id])


class FakeEstimator:
    """Counts a token per line; a line that says TOO LONG is."""

    def estimate(
        self,
        train: Dataset,
        valid: Dataset | None,
        options: TrainOptions,
        start: tuple[str, Manifest] | None = None,
    ) -> JobEstimate:
        for file, param in ((train, "training_file"), (valid, "validation_file")):
            if file is not None and (problems := self.problems(file, param)):
                raise InvalidDataset("lines are too long", problems, param=param)
        return JobEstimate(
            examples=len(train),
            counted=len(train),
            tokens=len(train),
            longest=1,
            n_epochs=options.n_epochs or 1,
            batch_size=1,
            steps=len(train),
            trained_tokens=len(train),
            seconds=3,
            measured=False,
            parameters=10,
            adapter_bytes=4096,
            warnings=tuple(dataset_warnings(train, valid)),
        )

    def problems(self, dataset: Dataset, param: str) -> list[LineProblem]:
        long = [line for line, record in dataset.records if "TOO LONG" in str(record)]
        return [LineProblem(line, "300 tokens are more than the 256", param) for line in long]

    def renderer(
        self, start: tuple[str, Manifest] | None = None
    ) -> Callable[[Mapping[str, object]], list[RenderedExample]]:
        """A token is a character; a completion's, or the last message's, are learnt."""

        def render(record: Mapping[str, object]) -> list[RenderedExample]:
            if "TOO LONG" in str(record):
                raise InvalidRequest("300 tokens are more than the 256")
            texts = [str(record.get("prompt")), str(record.get("completion"))]
            messages = record.get("messages")
            if isinstance(messages, Sequence):
                texts = [str(message["content"]) for message in messages]
            tokens = [
                RenderedToken(ord(char), char, False, text is texts[-1])
                for text in texts
                for char in text
            ]
            return [RenderedExample((*tokens, RenderedToken(EOS, "<|end|>", True, True)))]

        return render


class FakeHandle(Handle):
    """A submitted request: what was asked, and whether somebody gave up on it."""

    def __init__(self, generation: Generation) -> None:
        super().__init__(())
        object.__setattr__(self, "generation", generation)
        object.__setattr__(self, "cancelled", threading.Event())

    generation: Generation
    cancelled: threading.Event


def score(token_id: int) -> TokenLogprob:
    """A made-up score; the best alternative is the letter x."""
    return TokenLogprob(token_id, -0.5, ((ord("x"), -0.25), (token_id, -0.5)))


class FakeLoop:
    """Answers everything with `text`, a token per byte, from threads as the engine does.

    `pause_s` is waited between tokens, `hold` before the first; `failure` ends an answer after
    `failure_after` tokens; `refusal` is raised by `submit`. Each prompt finds `cached_tokens`, of
    its first answer; the others find all but one token.
    """

    def __init__(self) -> None:
        self.text = "Hé!"
        self.cached_tokens = 0
        self.pause_s = 0.0
        self.hold: threading.Event | None = None
        self.failure: Exception | None = None
        self.failure_after = 0
        self.refusal: Exception | None = None
        self.alive = True
        self.max_context = 256
        self.max_answers = 576
        self.handles: list[FakeHandle] = []

    @property
    def asked(self) -> list[Generation]:
        return [handle.generation for handle in self.handles]

    def submit(self, request: Generation, listener: Listener) -> FakeHandle:
        if self.refusal is not None:
            raise self.refusal
        Capacity(max_answers=self.max_answers, max_context=self.max_context).enter(request, now=0.0)
        handle = FakeHandle(request)
        self.handles.append(handle)
        for index in range(request.n):
            answer = threading.Thread(target=self._answer, args=(handle, index, listener))
            answer.daemon = True
            answer.start()
        return handle

    def cancel(self, handle: Handle) -> None:
        assert isinstance(handle, FakeHandle)
        handle.cancelled.set()

    def stats(self) -> LoopStats:
        return LoopStats(running=2, waiting=1, kv_blocks_used=3, kv_blocks_total=12)

    def _answer(self, handle: FakeHandle, index: int, listener: Listener) -> None:
        if self.hold is not None:
            self.hold.wait(10)
        for delta in self._deltas(handle.generation, index):
            if handle.cancelled.wait(self.pause_s) if self.pause_s else handle.cancelled.is_set():
                listener.hear(TextDelta(index, finish=FinishReason.CANCELLED))
                listener.flush()
                return
            listener.hear(delta)
            listener.flush()

    def _deltas(self, asked: Generation, index: int) -> Iterable[TextDelta]:
        params = asked.params
        cached = len(asked.prompt) - 1 if index else self.cached_tokens
        scores = None
        if params.prompt_logprobs:
            scores = (None, *(score(token_id) for token_id in asked.prompt[1:]))
        if params.max_tokens == 0:
            ended = FinishReason.LENGTH
            yield TextDelta(index, prompt_logprobs=scores, finish=ended, cached_tokens=cached)
            return
        tokens = [*self.text.encode(), EOS][: params.max_tokens]
        stream = ByteStream()
        for place, token_id in enumerate(tokens):
            if self.failure is not None and place == self.failure_after:
                yield TextDelta(index, finish=FinishReason.ERROR, error=self.failure)
                return
            text = stream.push(token_id)
            told = None if params.top_logprobs is None else score(token_id)
            last = place == len(tokens) - 1
            ended = FinishReason.STOP if token_id == EOS else FinishReason.LENGTH
            yield TextDelta(
                index,
                text,
                (TokenPiece(token_id, text, told),),
                prompt_logprobs=scores if place == 0 else None,
                finish=ended if last else None,
                cached_tokens=cached if last else 0,
            )


resident_status = partial(AdapterStatus, state=AdapterState.RESIDENT, slot=1, bytes=4096)


class FakeResidency:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.residents: dict[AdapterRef, AdapterStatus] = {}
        self.slots, self.loads, self.evictions, self.hits = 8, 5, 2, 9
        self.forgotten: list[AdapterRef] = []

    def snapshot(self) -> list[AdapterStatus]:
        return list(self.residents.values())

    def pin(self, ref: AdapterRef) -> None:
        self.residents[ref] = resident_status(ref, pinned=True)

    def unpin(self, ref: AdapterRef) -> None:
        self.residents[ref] = resident_status(ref)

    def forget(self, ref: AdapterRef) -> None:
        self.forgotten.append(ref)
        self.residents.pop(ref, None)


def found(layers: int = 2, *, compared: bool = False) -> Findings:
    """Made-up findings of a model whose every layer has two linears."""
    places = [(n, module) for n in range(layers) for module in ("self_attn.q_proj", "mlp.up_proj")]
    return Findings(
        method="vera",
        rank=4,
        trained_parameters=123,
        relative_norm=0.03,
        layers=tuple(_layer(n, module) for n, module in places),
        comparison=Comparison("lora", 2, tuple(_similarity(n, module) for n, module in places))
        if compared
        else None,
    )


def _layer(layer: int, module: str) -> LayerFindings:
    norm = 1.0 + layer
    return LayerFindings(
        path=f"model.layers.{layer}.{module}",
        layer=layer,
        module=module,
        shape=(6, 5),
        trained={"d": TrainedVector(0.2, 0.1, 1.0), "b": TrainedVector(0.3, None, None)},
        weight_norm=50.0,
        norm=norm,
        relative_norm=norm / 50,
        spectral_norm=norm / 2,
        stable_rank=4.0,
        effective_rank=3.5,
        numerical_rank=4,
        singular_values=(norm / 2, norm / 4, norm / 8, norm / 16),
    )


def _similarity(layer: int, module: str) -> LayerSimilarity:
    left = SpaceSimilarity(0.75 if layer else None, (4, 2), 0.25)
    return LayerSimilarity(
        f"model.layers.{layer}.{module}",
        layer,
        module,
        left,
        SpaceSimilarity(1.0, (4, 2), 0.5),
        0.5,
    )


class FakeInspection:
    """An analysis that goes as far as the test lets it."""

    def __init__(self) -> None:
        self.total, self.done = 4, 0
        self.findings: Future[Findings] = Future()


class FakeInspections:
    """Ends every analysis at once with `found`, or `failure`, or leaves it (`held`) to the test."""

    def __init__(self) -> None:
        self.started: list[tuple[AdapterRef, AdapterRef | None]] = []
        self.failure: Exception | None = None
        self.held: FakeInspection | None = None

    def start(self, ref: AdapterRef, other: AdapterRef | None = None) -> FakeInspection:
        self.started.append((ref, other))
        if self.held is not None:
            return self.held
        inspection = FakeInspection()
        if self.failure is not None:
            inspection.findings.set_exception(self.failure)
        else:
            inspection.findings.set_result(found(compared=other is not None))
        return inspection

    def known(self, sha256: str) -> bool:
        return False


class FakePorting:
    """Publishes whatever is sent, and gives out two files; remembers what it was told."""

    def __init__(self, store: AdapterStore, folder: Path) -> None:
        self._store = store
        self._folder = folder
        self.told: list[Mapping[str, str]] = []
        self.received: list[tuple[bytes, bytes]] = []
        self.asked: list[tuple[AdapterRef, str]] = []
        self.failure: Exception | None = None
        self.files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"w" * 3_000_000}

    def import_adapter(
        self, owner: str, name: str, config: BinaryIO, weights: BinaryIO, **told: str
    ) -> AdapterRef:
        if self.failure is not None:
            raise self.failure
        self.told.append(told)
        self.received.append((config.read(), weights.read()))
        manifest = Manifest(
            method="lora",
            rank=2,
            scale=1.0,
            seed=0,
            basis_spec="none",
            basis_sha256="",
            base_name="tiny",
            base_fingerprint="f" * 64,
            targets=("q",),
            created_at=1_700_000_000,
        )
        return self._store.publish(owner, name, manifest, {"q.A": torch.ones(2, 3)})

    def copy_adapter(self, ref: AdapterRef, owner: str, name: str) -> AdapterRef:
        manifest, tensors, _ = self._store.load(ref)
        return self._store.publish(owner, name, manifest, tensors)

    def export_adapter(self, ref: AdapterRef, form: str, *, owner: str | None = None) -> Path:
        if self.failure is not None:
            raise self.failure
        self.asked.append((ref, form))
        folder = self._folder / f"out-{len(self.asked)}"
        folder.mkdir(parents=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return folder

    def release(self, folder: Path) -> None:
        shutil.rmtree(folder)

    def left(self) -> list[Path]:
        """Folders that nobody removed."""
        return [*self._folder.glob("*")]
