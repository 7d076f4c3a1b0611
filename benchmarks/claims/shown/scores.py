"""BLEU, NIST, METEOR, ROUGE-L and CIDEr of answers to the test meanings, by well-kept scorers.

All of them see several references for each meaning. BLEU is sacrebleu's and NIST (of 5-grams)
nltk's, both over sacrebleu's 13a tokens in lower case, as the E2E challenge's scripts count;
METEOR 1.5, ROUGE-L and CIDEr are pycocoevalcap's over its PTB tokens. The last needs Java.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from nltk.translate.nist_score import corpus_nist
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from sacrebleu import corpus_bleu
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

NAMES = ("BLEU", "NIST", "METEOR", "ROUGE-L", "CIDEr")


class Scorer:
    """Scores any number of systems against one set of references.

    Args:
        references: for each meaning, what people wrote.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        self._references = [list(texts) for texts in references]
        self._ptb = PTBTokenizer()
        self._spoken = self._ptb.tokenize(_captions(self._references))
        self._meteor, self._rouge, self._cider = Meteor(), Rouge(), Cider()

    def scores(self, texts: Sequence[str]) -> dict[str, float]:
        """By `NAMES`; all but NIST and CIDEr in percent."""
        spoken = self._ptb.tokenize(_captions([[text] for text in texts]))
        return {
            "BLEU": bleu(self._references, texts),
            "NIST": nist(self._references, texts),
            "METEOR": 100 * float(self._meteor.compute_score(self._spoken, spoken)[0]),
            "ROUGE-L": 100 * float(self._rouge.compute_score(self._spoken, spoken)[0]),
            "CIDEr": float(self._cider.compute_score(self._spoken, spoken)[0]),
        }


def bleu(references: Sequence[Sequence[str]], texts: Sequence[str]) -> float:
    """Of a corpus, in percent; the meanings may have different numbers of references."""
    most = max(map(len, references))
    columns: list[Any] = [
        [several[place] if place < len(several) else None for several in references]
        for place in range(most)
    ]
    return float(corpus_bleu(list(texts), columns, lowercase=True).score)


def nist(references: Sequence[Sequence[str]], texts: Sequence[str]) -> float:
    """Of a corpus; n-grams up to five words."""
    words = [[_words(text) for text in several] for several in references]
    return float(corpus_nist(words, [_words(text) for text in texts], 5))


def _words(text: str) -> list[str]:
    words: list[str] = Tokenizer13a()(text.lower()).split()
    return words


def _captions(texts: Sequence[Sequence[str]]) -> Mapping[int, list[dict[str, str]]]:
    return {
        place: [{"caption": text or "."} for text in several] for place, several in enumerate(texts)
    }
