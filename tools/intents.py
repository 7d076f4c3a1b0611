"""Makes the intent files of `examples/` from the SNIPS commands.

    python -m tools.intents --data FOLDER --out examples

FOLDER holds the JSON files of https://github.com/sonos/nlu-benchmark, 2017-06-custom-intent-engines
(CC0): `train_<intent>_full.json` and `validate_<intent>.json`.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

INTENTS = {
    "AddToPlaylist": "add to playlist",
    "BookRestaurant": "book restaurant",
    "GetWeather": "get weather",
    "PlayMusic": "play music",
    "RateBook": "rate book",
    "SearchCreativeWork": "search creative work",
    "SearchScreeningEvent": "search screening event",
}
TRAINED, HELD_OUT = 40, 10  # commands of each intent
_SEED = 0


def main(argv: Sequence[str] | None = None) -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of the JSON files")
    parser.add_argument("--out", type=Path, required=True, help="where the two files go")
    options = parser.parse_args(argv)
    draw = random.Random(_SEED)
    held_out = _chosen(options.data, "validate_{}.json", HELD_OUT, draw, without=set())
    seen = {command.casefold() for command, _ in held_out}
    trained = _chosen(options.data, "train_{}_full.json", TRAINED, draw, without=seen)
    _write(options.out / "intents.jsonl", trained)
    _write(options.out / "intents_held_out.jsonl", held_out)


def _chosen(
    folder: Path, pattern: str, count: int, draw: random.Random, without: set[str]
) -> list[tuple[str, str]]:
    """`count` commands of each intent, none twice, in a random order."""
    found = []
    for intent, name in INTENTS.items():
        commands = {text: None for text in _commands(folder / pattern.format(intent), intent)}
        fresh = [text for text in commands if text.casefold() not in without]
        found += [(text, name) for text in draw.sample(fresh, count)]
    draw.shuffle(found)
    return found


def _commands(path: Path, intent: str) -> list[str]:
    """Those in ASCII: the files' encodings differ."""
    entries = json.loads(path.read_text(encoding="latin-1"))[intent]
    texts = ("".join(part["text"] for part in entry["data"]).strip() for entry in entries)
    return [text for text in texts if text.isascii()]


def _write(path: Path, chosen: Sequence[tuple[str, str]]) -> None:
    with path.open("w") as file:
        for command, name in chosen:
            user = {"role": "user", "content": command}
            line = {"messages": [user, {"role": "assistant", "content": name}]}
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
