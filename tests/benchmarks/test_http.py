"""The load generator counts what was answered, and its made-up tokenizer is one."""

import pytest

from benchmarks.serving.http import _tokenizer
from benchmarks.support.load import Load, ask
from server.bases.tokenizer import ChatTokenizer
from tests.api.conftest import empty_database, host, publish, serve, server, services, store
from tests.api.running import Running

__all__ = ["empty_database", "host", "publish", "serve", "server", "services", "store"]


def test_every_token_of_the_made_up_tokenizer_is_text() -> None:
    tokenizer = ChatTokenizer(_tokenizer(32_000))
    assert len(tokenizer) == 32_000
    texts = {tokenizer.decode([token]) for token in range(300, 32_000)}
    assert len(texts) == 32_000 - 300, "a token without a text of its own would not be seen"
    assert len(tokenizer.encode("a" * 128)) == 128


@pytest.mark.parametrize("stream", [True, False])
def test_answers_are_counted(server: Running, stream: bool) -> None:
    server.loop.pause_s = 0.01  # else all of an answer may come in one piece, without a gap
    load = Load(4, 8, 3, 200, stream, warm_up_s=0.2, seconds=0.5)
    port = int(server.url.rpartition(":")[2])
    heard, _ = ask(port, load, 1)
    assert 4 < heard.answers <= len(server.loop.asked)
    assert all(asked.params.ignore_eos for asked in server.loop.asked)
    assert all(len(asked.prompt) == 8 for asked in server.loop.asked)
    assert (heard.events > heard.answers) == stream
    assert bool(heard.gaps) == stream


def test_a_refusal_is_told(server: Running) -> None:
    load = Load(1, 300, 3, 200, True, warm_up_s=0.1, seconds=0.1)
    with pytest.raises(RuntimeError, match="context_length_exceeded"):
        ask(int(server.url.rpartition(":")[2]), load, 1)
