"""Writes the model card, the loss figures and the loss curve."""

import csv
from pathlib import Path
from typing import Any

from tools.porch.conversations import Conversation
from tools.porch.pretrain import Curve

Record = dict[str, Any]

_STRICT = (
    "arithmetic",
    "books",
    "commands",
    "glosses",
    "guides",
    "medical",
    "simple_books",
    "stories",
    "textbooks",
)
_TEXT = Path(__file__).with_name("card.md")


def write_card(folder: Path, record: Record, curves: dict[str, Curve]) -> None:
    """Writes README.md, loss.csv and loss.png into the model's folder."""
    _write_losses(folder / "loss.csv", curves)
    _draw_losses(folder / "loss.png", curves)
    (folder / "README.md").write_text(card(record), "utf-8")


def card(record: Record) -> str:
    """Returns the model card's text for one build's record."""
    text = _TEXT.read_text("utf-8")
    parts = {
        "SCORES": _scores(record),
        "RECORD": _build_record(record),
        "CONTINUATIONS": _continuations(record["continuations"]),
        "CHATS": "\n\n".join(_chat(n, talk) for n, talk in enumerate(record["chats"], 11)),
        "ANSWER_LOSSES": _answer_losses(record),
        "HELD_OUT": _bits(record, "tuned", "all held-out documents"),
        "STRICT": _strict_bits(record, "tuned"),
        "STRICT_PRETRAINED": _strict_bits(record, "pretrained"),
        "HELD_OUT_PRETRAINED": _bits(record, "pretrained", "all held-out documents"),
    }
    for name, part in parts.items():
        text = text.replace(f"<<{name}>>", part)
    return text


def _bits(record: Record, label: str, text: str) -> str:
    return f"{record['scores'][label][text]['bits_per_byte']:.3f}"


def _strict_bits(record: Record, label: str) -> str:
    """Returns the bits per byte over the sources that hold no share-alike text."""
    parts = [score for name, score in record["scores"][label].items() if name in _STRICT]
    bits = sum(part["bits_per_byte"] * part["bytes"] for part in parts)
    return f"{bits / max(1, sum(part['bytes'] for part in parts)):.3f}"


def _scores(record: Record) -> str:
    lines = [
        "| text | bytes | after pre-training | after chat tuning |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, value in record["scores"]["tuned"].items():
        bits = f"{_bits(record, 'pretrained', name)} | {_bits(record, 'tuned', name)}"
        lines.append(f"| {name.replace('_', ' ')} | {value['bytes']:,} | {bits} |")
    return "\n".join(lines)


def _answer_losses(record: Record) -> str:
    """Returns a row for each set of answers; a record of an older build may hold none."""
    lines = ["| answers | nats a token |", "| --- | ---: |"]
    losses = record.get("answer_losses", {}).get("tuned", {})
    return "\n".join([*lines, *(f"| {name} | {loss:.2f} |" for name, loss in losses.items())])


def _build_record(record: Record) -> str:
    unique = sum(record["unique_tokens"].values())
    rows = [
        ("parameters", f"{record['parameters']:,} (embedding tied with the output)"),
        ("unique training tokens", f"{unique / 1e6:.1f} million in plain text"),
    ]
    for name, curve in record["curves"].items():
        speed = curve["tokens"] / curve["seconds"] / 1e6
        rows.append(
            (
                name,
                f"{curve['tokens'] / 1e6:,.0f} million tokens in {curve['steps']:,} steps, "
                f"{curve['seconds'] / 60:.1f} minutes, {speed:.2f} million tokens a second",
            )
        )
    rows += [
        ("batch", f"{record['rows']} rows of 1024 tokens (half as many while tuning)"),
        ("processor", f"one {record['processor']}, bfloat16 with float32 weights"),
        ("whole build", f"{record['build_seconds'] / 60:.1f} minutes"),
        ("seed", str(record["seed"])),
        (
            "versions",
            ", ".join(
                f"{name} {record[name.lower()]}"
                for name in ("Python", "torch", "transformers", "tokenizers")
            ),
        ),
    ]
    return "\n".join(["| | |", "| --- | --- |", *(f"| {a} | {b} |" for a, b in rows)])


def _continuations(samples: list[tuple[str, str, str]]) -> str:
    return "\n\n".join(
        f"{number}. From {source.replace('_', ' ')}:\n\n{_quoted(f'[{prefix}] {answer}')}"
        for number, (source, prefix, answer) in enumerate(samples, 1)
    )


def _chat(number: int, talk: Conversation) -> str:
    turns = "\n".join(f"{turn['role']}: {turn['content']}" for turn in talk)
    return f"{number}.\n\n{_quoted(turns)}"


def _quoted(text: str) -> str:
    return "\n".join(["   ```text", *(f"   {line}" for line in text.splitlines()), "   ```"])


def _write_losses(path: Path, curves: dict[str, Curve]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("phase", "step", "tokens", "seconds", "nats_per_token"))
        for name, curve in curves.items():
            writer.writerows((name, *point) for point in curve.points)


def _draw_losses(path: Path, curves: dict[str, Curve]) -> None:
    # Only this figure needs matplotlib, and only the build needs this figure.
    from matplotlib import pyplot  # type: ignore[import-not-found, unused-ignore]

    figure, axes = pyplot.subplots(1, len(curves), figsize=(10, 4), width_ratios=(3, 1))
    for axis, (name, curve) in zip(axes, curves.items(), strict=True):
        axis.plot([p[1] / 1e6 for p in curve.points], [p[3] for p in curve.points], linewidth=0.8)
        axis.set_title(name)
        axis.set_xlabel("million tokens seen")
        axis.set_ylabel("training loss (nats a token)")
        axis.grid(alpha=0.3)
    axes[0].set_ylim(top=4.5)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
