"""Judges token ids by a vocabulary, for requests and for training lines. Knows no torch."""

from collections.abc import Sequence


def unknown_token(tokens: Sequence[int], vocab_size: int) -> int | None:
    """The first token that the model does not have: on a GPU it would end the process."""
    if not tokens or 0 <= min(tokens) <= max(tokens) < vocab_size:
        return None
    return next(token for token in tokens if not 0 <= token < vocab_size)
