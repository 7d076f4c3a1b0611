"""Log-probabilities in the two shapes of the OpenAI API. Knows no requests."""

from collections.abc import Iterable
from collections.abc import Sequence as Seq

from server.engine.sequence import TokenLogprob
from server.interfaces import Tokenizer
from server.scheduler.request import TokenPiece

_LOWEST = -9999.0  # JSON has no -inf; vLLM's stand-in


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
    tokens: Seq[tuple[str, int, TokenLogprob | None]],
    *,
    offset: int,
) -> dict[str, object]:
    """`choices[].logprobs` of a completion.

    Args:
        tokens: each token's text, id and score (None: the first token of a prompt has none).
        offset: place of the first token in the choice's text, in characters.
    """
    offsets: list[int] = []
    for text, _, _ in tokens:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": [tokenizer.token_text(token_id) for _, token_id, _ in tokens],
        "token_logprobs": [
            None if score is None else max(score.logprob, _LOWEST) for _, _, score in tokens
        ],
        "top_logprobs": [
            None if score is None else _best(tokenizer, score) for _, _, score in tokens
        ],
        "text_offset": offsets,
    }


def _best(tokenizer: Tokenizer, score: TokenLogprob) -> dict[str, float]:
    """Text to logprob. Tokens that are parts of characters may share a text: the best counts."""
    best: dict[str, float] = {}
    for token_id, logprob in (*score.top, (score.token_id, score.logprob)):
        best.setdefault(tokenizer.token_text(token_id), max(logprob, _LOWEST))
    return best
