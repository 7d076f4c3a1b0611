"""Turns documents into conversations of system, user and assistant turns."""

import itertools
import random
import re
from collections.abc import Callable, Iterator

Conversation = list[dict[str, str]]

_MARK = re.compile(r"^(User|Assistant): ", re.MULTILINE)
_TALE_WORDS = re.compile(r"\b(said|once|cried|mother|little|lived|Mama|Papa)\b")
_LONGEST_ANSWER = 1800
_LONGEST_QUESTION = 2200


def conversations_of(
    source: str, documents: list[str], chance: random.Random
) -> list[Conversation]:
    """Returns the conversations that the documents of one source make, if any."""
    maker = _MAKERS.get(source)
    if maker is None:
        return []
    talks = [talk for document in documents for talk in maker(document, chance)]
    return [talk for talk in talks if _usable(talk)]


def exchange(question: str, answer: str, system: str | None = None) -> Conversation:
    """Returns one question with its answer, after an optional system turn."""
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": question.strip()})
    turns.append({"role": "assistant", "content": answer.strip()})
    return turns


def tidy(text: str) -> str:
    """Mends the spacing and the capitals of transcribed speech."""
    text = re.sub(r"\s+'\s*(t|s|re|ve|ll|d|m)\b", r"'\1", text)
    text = re.sub(r"\s+([,.?!;:])", r"\1", text)
    text = re.sub(r"\bi\b(?!\.)", "I", re.sub(r" {2,}", " ", text.strip()))
    return re.sub(r"(^|[.?!] )([a-z])", lambda match: match[1] + match[2].upper(), text)


def first_sentences(text: str, characters: int) -> str:
    """Returns the opening sentences that fit in so many characters, at least one."""
    sentences = re.split(r"(?<=[a-z0-9)\"'][.?!]) (?=[A-Z\"'])", text.replace("\n", " ").strip())
    opening = sentences[0]
    for sentence in sentences[1:]:
        if len(opening) + len(sentence) >= characters:
            break
        opening += " " + sentence
    return opening


def _usable(talk: Conversation) -> bool:
    if len(talk) < 2 or any(not turn["content"].strip() for turn in talk):
        return False
    longest = {"assistant": _LONGEST_ANSWER, "user": _LONGEST_QUESTION}
    return all(len(turn["content"]) <= longest[turn["role"]] for turn in talk)


def _dialogue(document: str, _: random.Random) -> Iterator[Conversation]:
    parts = _MARK.split(document)[1:]
    turns: Conversation = []
    for speaker, text in zip(parts[::2], parts[1::2], strict=True):
        role = speaker.lower()
        if not turns and role == "assistant":
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += " " + tidy(text)
        else:
            turns.append({"role": role, "content": tidy(text)})
    if turns and turns[-1]["role"] == "user":
        turns.pop()
    yield turns


def _instruction(document: str, _: random.Random) -> Iterator[Conversation]:
    question, mark, answer = document.partition("\nResponse: ")
    if mark:
        yield exchange(question.removeprefix("Instruction: "), answer)


def _tale_question(document: str, chance: random.Random) -> Iterator[Conversation]:
    passage, _, tail = document.rpartition("Question: ")
    question, mark, answer = tail.partition("\nAnswer: ")
    if not mark or len(passage) < 40:
        return
    answer = answer.strip()
    answer = answer[:1].upper() + answer[1:] + ("" if answer[-1:] in '.?!"' else ".")
    order = (question.strip(), passage.strip())
    yield exchange("\n".join(order if chance.random() < 0.3 else order[::-1]), answer)


def _arithmetic(document: str, _: random.Random) -> Iterator[Conversation]:
    question, _mark, answer = document.partition("\nAnswer: ")
    worked = re.sub(r"#### (\S+)", r"The answer is \1.", answer)
    yield exchange(question.removeprefix("Question: "), worked)


def _medical(document: str, chance: random.Random) -> Iterator[Conversation]:
    question, _mark, answer = document.partition("\nAnswer: ")
    question = question.removeprefix("Question: ").replace(" (are)", "").replace("??", "?")
    question = question.replace("Do you have information about", "Tell me about")
    answer = re.sub(r"Summary : |Key Points|^- ", "", answer).strip()
    yield exchange(question, first_sentences(answer, chance.choice((200, 350, 600))))


def _command(document: str, chance: random.Random) -> Iterator[Conversation]:
    lines = document.splitlines()
    name = lines[0].removeprefix("# ")
    about = lines[1].removeprefix("> ")
    yield exchange(f"What does the command `{name}` do?", about)
    uses = [
        (task.removeprefix("- ").rstrip(":"), command)
        for task, command in itertools.pairwise(lines)
        if task.startswith("- ") and command.startswith("`")
    ]
    for task, command in chance.sample(uses, min(2, len(uses))):
        task = re.sub(r"\[(\w)\]", r"\1", task[:1].lower() + task[1:])
        command = re.sub(r"\{\{(?:\[[^|\]]*\|)?([^}\]]*)\]?\}\}", r"\1", command)
        yield exchange(f"How do I {task} with {name}?", f"Use this command: {command}")


def _gloss(document: str, chance: random.Random) -> Iterator[Conversation]:
    for line in document.splitlines():
        words, _, meaning = line.partition(": ")
        word = words.split(", ")[0]
        if not meaning or chance.random() > 0.35 or len(word) > 30:
            continue
        meaning, _, example = meaning.partition(' "')
        meaning = meaning.strip(" ;.")
        answer = f'"{word[:1].upper() + word[1:]}" means {meaning}.'
        if example and chance.random() < 0.7:
            answer += f' For example: "{example.split(chr(34))[0].strip()}"'
        question = chance.choice(
            (f'What does "{word}" mean?', f"What is the meaning of {word}?", f"Define {word}.")
        )
        yield exchange(question, answer)


def _encyclopedia(document: str, chance: random.Random) -> Iterator[Conversation]:
    title, _, text = document.partition("\n")
    name = re.sub(r"\s*\(.*", "", title).strip()
    if not 1 < len(name) < 60 or len(text) < 60 or name[-1] in ".?!\"'," or name[0].islower():
        return
    text = re.sub(r"\s*\([^()]*\)", "", re.sub(r"\s*\([^()]*\)", "", text))
    answer = first_sentences(text, chance.choice((160, 300, 500)))
    opening = text[: len(name) + 80]
    if re.search(r"\b(born|died)\b", document[:200]):
        question = chance.choice((f"Who is {name}?", f"Tell me about {name}."))
    elif re.search(r"\b(was|were)\b", opening):
        question = chance.choice((f"What was {name}?", f"Tell me about {name}."))
    else:
        question = chance.choice((f"What is {name}?", f"Tell me about {name}.", f"Explain {name}."))
    yield exchange(question, answer)


def _story(document: str, chance: random.Random) -> Iterator[Conversation]:
    title, _, text = document.partition("\n")
    title, text = title.strip(), text.replace("\n", " ").strip()
    if not 3 < len(title) < 60 or title[-1] in '.,;?"' or not _TALE_WORDS.search(text[:800]):
        return
    answer = text if len(text) < 1500 else first_sentences(text, chance.choice((500, 900, 1400)))
    question = chance.choice(
        (
            f'Tell me a story called "{title}".',
            f"Tell me a story about {title}.",
            f"Write a short story about {title}.",
            "Tell me a story.",
            "Please tell me a short story for children.",
        )
    )
    yield exchange(question, answer)


def _sentence(document: str, chance: random.Random) -> Iterator[Conversation]:
    for line in document.splitlines():
        words = re.findall(r"[a-z]{4,}", line)
        if not words or not 25 < len(line) < 110 or line[-1] not in ".?!":
            continue
        word = chance.choice(words)
        question = chance.choice(
            (
                f'Write a sentence with the word "{word}".',
                f"Use {word} in a sentence.",
                f"Can you write a sentence about {word}?",
            )
        )
        yield exchange(question, line)


def _prompt(document: str, _: random.Random) -> Iterator[Conversation]:
    question, _mark, answer = document.rstrip().rpartition("\n")
    if len(question) < 1500 and answer:
        yield exchange(question, answer[:1].upper() + answer[1:])


_MAKERS: dict[str, Callable[[str, random.Random], Iterator[Conversation]]] = {
    "dialogues": _dialogue,
    "instructions": _instruction,
    "tale_questions": _tale_question,
    "arithmetic": _arithmetic,
    "medical": _medical,
    "commands": _command,
    "glosses": _gloss,
    "encyclopedia": _encyclopedia,
    "stories": _story,
    "sentences": _sentence,
    "prompts": _prompt,
}
