"""Reads the training texts and sorts their documents into named sources.

The texts carry no labels, so a document's form alone says its source.
"""

import lzma
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

SEPARATOR = "<|doc|>\n"
TRAIN_FILES = ("strict_a", "strict_b", "broad")
HELD_OUT_FILES = ("strict_val", "broad_val")

BOOK_CHARACTERS = 60_000
# A book whose sentences and words are both this short reads like one for children.
SIMPLE_SENTENCE_WORDS = 15.5
SIMPLE_WORD_LETTERS = 4.15

_TEXTBOOK = re.compile(
    r"Learning (Objective|Outcome)|By the end of this section|Teacher Support|Chapter Outline"
    r"|Review Questions|Critical Thinking|Key Terms|Standards\nTopic|Unit Introduction|Endnotes"
)
_WEBSITE = re.compile(
    r"\b(website|web site|digital|mobile|app|apps|software|online|menu|click|federal|government"
    r"|agency|settings|data|users?)\b",
    re.IGNORECASE,
)
_STORY = re.compile(
    r"once upon a time|long ago|one day|there (was|were|lived)|\bsaid\b|\basked\b|\bmother\b",
    re.IGNORECASE,
)
_GLOSS = re.compile(r"^[^:.!?]{1,80}: \S")


def read_documents(path: Path) -> list[str]:
    """Returns the documents of one text file, plain or `.xz`, in their stored order."""
    raw = path.read_bytes()
    raw = lzma.decompress(raw) if path.suffix == ".xz" else raw
    documents = raw.decode("utf-8").split(SEPARATOR)
    return [document for document in documents if document.strip()]


def find_text(folder: Path, name: str) -> Path:
    """Returns the path of a named text in a folder, whether it is compressed or not."""
    for suffix in (".txt", ".txt.xz"):
        if (folder / (name + suffix)).exists():
            return folder / (name + suffix)
    raise FileNotFoundError(f"{folder} holds neither {name}.txt nor {name}.txt.xz")


def load_sources(folder: Path, names: Iterable[str]) -> dict[str, list[str]]:
    """Returns the documents of the named texts, grouped by source."""
    sources: dict[str, list[str]] = defaultdict(list)
    paths = [find_text(folder, name) for name in names]
    with ProcessPoolExecutor() as pool:
        for sorted_file in pool.map(_sort_file, paths):
            for source, documents in sorted_file.items():
                sources[source].extend(documents)
    return dict(sources)


def _sort_file(path: Path) -> dict[str, list[str]]:
    sources: dict[str, list[str]] = defaultdict(list)
    for document in read_documents(path):
        source = _marked_source(document) or _prose_source(document, path.name)
        sources[source].append(document.replace("<|endoftext|>", ""))
    return dict(sources)


def _marked_source(document: str) -> str | None:
    """Returns the source of a document that gives itself away by its markers."""
    if document.rstrip().endswith("<|endoftext|>"):
        return "prompts"
    if document.startswith(("User:", "Assistant:")):
        return "dialogues"
    if document.startswith("Instruction:"):
        return "instructions"
    if document.startswith("# ") and "\n> " in document[:300]:
        return "commands"
    if re.search(r"\n#### \S+\s*$", document[-60:]):
        return "arithmetic"
    if "\nAnswer:" in document[-700:] and "Question: " in document[-1500:]:
        return "medical" if _is_medical(document) else "tale_questions"
    return "medical" if _is_medical(document) else None


def _is_medical(document: str) -> bool:
    """Tells a question answered at length from one answered in a few words on a tale."""
    question, mark, answer = document.partition("\nAnswer:")
    return bool(mark) and question.startswith("Question: ") and len(answer) > 150


def _prose_source(document: str, file: str) -> str:
    """Returns the source of running text, by its file, length, words and lines."""
    lines = document[:6000].splitlines()
    if file.startswith("broad"):
        return "encyclopedia"
    if len(document) > 3_000_000:
        return "bibles"
    if len(lines) > 5 and _share(lines, lambda line: bool(_GLOSS.match(line))) > 0.7:
        return "glosses"
    if len(document) > BOOK_CHARACTERS and not _TEXTBOOK.search(document[:5000]):
        return "simple_books" if is_simple(document) else "books"
    if _TEXTBOOK.search(document):
        return "textbooks"
    if len(lines) > 60 and _share(lines, lambda line: line[-1:] in '.?!"') > 0.95:
        return "sentences"
    if _STORY.search(document) and len(_WEBSITE.findall(document)) < len(document) / 1000:
        return "stories"
    return "textbooks" if len(document) > 6000 else "guides"


def is_simple(document: str) -> bool:
    """Tells whether a book's middle has short sentences of short words."""
    middle = document[len(document) // 2 :][:40_000]
    words = re.findall(r"[A-Za-z']+", middle)
    sentences = max(1, len(re.findall(r"[.?!]", middle)))
    letters = sum(map(len, words)) / max(1, len(words))
    return len(words) / sentences < SIMPLE_SENTENCE_WORDS and letters < SIMPLE_WORD_LETTERS


def _share(lines: list[str], test: Callable[[str], bool]) -> float:
    return sum(map(test, lines)) / max(1, len(lines))
