"""A base model and its adapters in this process, without a server. Knows no HTTP."""

import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue

from server.api.completions import chat_completion, text_completion
from server.api.completions.chat_completion import ChatRequest
from server.api.completions.generation import CheckedRequest
from server.api.completions.text_completion import CompletionRequest
from server.config import AUTO, Settings
from server.errors import InvalidRequest
from server.metrics import Metrics
from server.scheduler.request import CallbackListener, TextDelta
from server.tenancy.principal import DEFAULT_OWNER
from server.wiring.building import open_records
from server.wiring.default_base import with_base
from server.wiring.front import running_front
from server.wiring.front_services import wire

log = logging.getLogger(__name__)

Message = Mapping[str, object]


class LLM:
    """Loads a base model and answers with it or with the adapters of a home. Thread-safe.

        with LLM(home="~/.verandah") as llm:
            for text in llm.stream([{"role": "user", "content": "Hello"}], adapter="pirate"):
                print(text, end="")

    Calls from several threads share one batch, as requests to a server do.

    Args:
        model: as `--model` of `verandah serve`.
        home: the folder with the adapters, as of `verandah serve`; it must exist. None: the
            settings' default.
        settings: further fields of `server.config.Settings`.

    Raises:
        ValueError: a setting may not have that value, or there is no such home.
        UnsupportedModel: the base cannot be served.
    """

    def __init__(
        self, model: str = AUTO, *, home: str | Path | None = None, **settings: object
    ) -> None:
        chosen = {"model": model, "worker": False, "engine_process": "no", **settings}
        if home is not None:
            if not Path(home).expanduser().is_dir():
                raise ValueError(f"home={str(home)!r} is no folder: name one that a server used")
            chosen["home"] = home
        self._settings = with_base(Settings.model_validate(chosen), log.info)
        metrics = Metrics(self._settings.served_name)
        with ExitStack() as opened:
            records = opened.enter_context(open_records(self._settings))
            front = opened.enter_context(running_front(self._settings, records, metrics, log.info))
            self._services = wire(self._settings, records, front, metrics, worker=None)
            self._opened = opened.pop_all()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engine: answers that run end with Unavailable. A second call does nothing."""
        self._opened.close()

    @property
    def adapters(self) -> Sequence[str]:
        """The names of the home's adapters, sorted."""
        return self._services.adapters.names(DEFAULT_OWNER)

    def stream(
        self, messages: Sequence[Message], adapter: str | None = None, **options: object
    ) -> Generator[str, None, None]:
        """Answer a conversation; yields the text as it is generated.

        Args:
            adapter: NAME or NAME@VERSION. None: the base model.
            options: fields of a chat completion, such as `max_tokens` or `temperature`.

        Raises:
            ModelNotFound: there is no such adapter.
            InvalidRequest, ValueError: a field is wrong; the message names it.
            VerandahError: the answer ended early; the message says why.
        """
        body = ChatRequest.model_validate(self._fields(adapter, options, messages=list(messages)))
        return self._texts(chat_completion.check_request(self._services, DEFAULT_OWNER, body))

    def chat(
        self, messages: Sequence[Message], adapter: str | None = None, **options: object
    ) -> str:
        """The whole answer of `stream`."""
        return "".join(self.stream(messages, adapter, **options))

    def generate(self, prompt: str, adapter: str | None = None, **options: object) -> str:
        """Continue a text. `options` are fields of a completion; otherwise as `stream`."""
        body = CompletionRequest.model_validate(self._fields(adapter, options, prompt=prompt))
        checked = text_completion.check_request(self._services, DEFAULT_OWNER, body)
        return "".join(self._texts(checked))

    def _fields(
        self, adapter: str | None, options: Mapping[str, object], **fields: object
    ) -> dict[str, object]:
        for name in ("n", "stream", "echo"):
            if name in options:
                raise InvalidRequest(f"{name} is for the HTTP API: leave it out", param=name)
        return {"model": adapter or self._settings.served_name, **options, **fields}

    def _texts(self, checked: CheckedRequest) -> Generator[str, None, None]:
        engine, updates = self._services.engine, SimpleQueue[TextDelta]()
        (generation,) = checked.generations
        handle = engine.submit(generation, CallbackListener(updates.put))
        try:
            finished = False
            while not finished:
                update = updates.get()
                if update.error is not None:
                    raise update.error
                if update.text:
                    yield update.text
                finished = update.finish is not None
        finally:
            engine.cancel(handle)  # does nothing unless the caller left the answer early
