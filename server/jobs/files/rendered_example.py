"""An example as the model reads it in training: its tokens, and which are learnt. Only values."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RenderedToken:
    """A token. `text` is empty for a part of a character: the last part has all of it."""

    id: int
    text: str
    special: bool
    learnt: bool


@dataclass(frozen=True)
class RenderedExample:
    """The tokens of one sequence, in their order."""

    tokens: tuple[RenderedToken, ...]

    @property
    def learnt(self) -> int:
        """How many tokens are learnt."""
        return sum(token.learnt for token in self.tokens)
