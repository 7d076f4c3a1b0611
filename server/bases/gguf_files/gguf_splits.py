"""How byte-level vocabularies cut a text into words before they merge: `tokenizer.ggml.pre`.

The names are llama.cpp's. A name stands for expressions that cut one after the other, and for two
habits of the vocabulary.
"""

from dataclasses import dataclass
from typing import Final

_GPT2: Final = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",)
_SHORTENED: Final = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|"
_MARKS_AND_SPACES: Final = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS: Final = r"[^\r\n\p{L}\p{N}]?\p{L}+|"


@dataclass(frozen=True)
class Splits:
    """How a text is cut before it is merged.

    Attributes:
        expressions: each cuts the pieces that the one before it left.
        whole_words: a piece that is a token is that token, whatever the merges say.
        begins: a text begins with the bos token, unless the file says otherwise.
    """

    expressions: tuple[str, ...]
    whole_words: bool = False
    begins: bool = False


_DEFAULT: Final = Splits(
    (r"[\p{P}\$\+<=>\^~\|]+", *_GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
)
_GPT: Final = Splits(_GPT2)
_DIGITS: Final = Splits((r"\p{N}", *_GPT2))
_THREES: Final = (_SHORTENED + _WORDS + r"\p{N}{1,3}|" + _MARKS_AND_SPACES,)
_LLAMA3: Final = Splits(_THREES, whole_words=True, begins=True)
_QWEN2: Final = Splits((_SHORTENED + _WORDS + r"\p{N}|" + _MARKS_AND_SPACES,))
_TEKKEN: Final = Splits(
    (
        r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+|"
        r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*|"
        r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    whole_words=True,
    begins=True,
)

SPLITS: Final = {
    "default": _DEFAULT,
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "jais", "trillion", "exaone4"), _GPT),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _DIGITS),
    **dict.fromkeys(("exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3"), _LLAMA3),
    **dict.fromkeys(("smaug-bpe", "dbrx"), Splits(_THREES)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez"), _QWEN2),
    "tekken": _TEKKEN,
}
