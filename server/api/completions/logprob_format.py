"""Log-probabilities in the two shapes of the OpenAI API. Knows no requests."""

from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Seq

from server.engine.sequence import FinishReason, TokenLogprob
from server.interfaces import Tokenizer
from server.scheduler.request import TokenPiece

_LOWEST = -9999.0  # JSON has no -inf; vLLM's stand-in


class ShownTokens:
    """The tokens that one answer's text shows, as the text grows.

    A token is listed once the text has gone beyond its beginning, or at the answer's end. If a stop
    string cut the text, the tokens that begin at the cut or behind it are never listed.
    """

    def __init__(self) -> None:
        self._waiting: deque[TokenPiece] = deque()
        self._begin = 0  # of the first token that waits, in characters of the text
        self._length = 0  # of the text

    def take(
        self,
        text: str,
        tokens: Iterable[TokenPiece],
        finish: FinishReason | None,
        stop_reason: str | int | None,
    ) -> list[tuple[int, TokenPiece]]:
        """Add what an update brought; the tokens to list now, each with where it begins."""
        self._length += len(text)
        self._waiting.extend(tokens)
        whole = finish is not None and not isinstance(stop_reason, str)
        listed = []
        while self._waiting and (whole or self._begin < self._length):
            token = self._waiting.popleft()
            listed.append((self._begin, token))
            self._begin += len(token.text)
        return listed


def for_chat(tokenizer: Tokenizer, pieces: Iterable[TokenPiece]) -> dict[str, object]:
    """`choices[].logprobs` of a chat answer."""
    content: list[dict[str, object]] = []
    for piece in pieces:
        if piece.logprob is None:
            continue
        entry = _entry(tokenizer, piece.token_id, piece.logprob.logprob)
        entry["top_logprobs"] = [
            _entry(tokenizer, token_id, logprob) for token_id, logprob in piece.logprob.top
        ]
        content.append(entry)
    return {"content": content, "refusal": None}


def _entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, object]:
    return {
        "token": tokenizer.token_text(token_id),
        "logprob": max(logprob, _LOWEST),
        "bytes": list(tokenizer.token_bytes(token_id)),
    }


def for_completion(
    tokenizer: Tokenizer,
    tokens: Seq[tuple[int, int, TokenLogprob | None]],
) -> dict[str, object]:
    """`choices[].logprobs` of a completion.

    Args:
        tokens: where each token begins in the choice's text, in characters, its id and its score
            (None: the first token of a prompt has none).
    """
    return {
        "tokens": [tokenizer.token_text(token_id) for _, token_id, _ in tokens],
        "token_logprobs": [
            None if score is None else max(score.logprob, _LOWEST) for _, _, score in tokens
        ],
        "top_logprobs": [
            None if score is None else _best(tokenizer, score) for _, _, score in tokens
        ],
        "text_offset": [offset for offset, _, _ in tokens],
    }


def _best(tokenizer: Tokenizer, score: TokenLogprob) -> dict[str, float]:
    """Text to logprob. Tokens that are parts of characters may share a text: the best counts."""
    best: dict[str, float] = {}
    for token_id, logprob in (*score.top, (score.token_id, score.logprob)):
        best.setdefault(tokenizer.token_text(token_id), max(logprob, _LOWEST))
    return best
