"""How well the base, the base with examples in its prompt, and an adapter say a user's fresh lines.

Losses are of the answers alone, in nats per token, on the base in float32. An adapter is asked as
it was trained: without the template's default system prompt. The base is asked with it.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from adapters_store.store import AdapterStore
from benchmarks.claims.personal.users import User, chat
from server.adapters.learning.trainable import TrainableAdapter
from server.bases.base_files import load_base
from server.bases.model import BaseModel
from server.bases.tokenizer import load_tokenizer
from server.training.run.examples import Example, LineEncoder
from server.training.run.loss import ScoreSums, counted_losses

SHOTS = 8
_AT_ONCE = 8


class Judge:
    """Holds the base and the store of a server that has ended."""

    def __init__(self, base: str, adapters: Path, device: str) -> None:
        dtype = torch.float32
        self._base: BaseModel = load_base(base, device=device, dtype=dtype)
        tokenizer = load_tokenizer(base)
        self._usual = LineEncoder.of(self._base, tokenizer)
        self._bare = LineEncoder.of(self._base, tokenizer.without_default_prompt())
        self._store = AdapterStore(adapters)

    def losses(self, user: User, adapter: str | None) -> dict[str, float]:
        """`base`, `shots` (the first lines of the file stand in the prompt) and `adapter`."""
        found = {
            "base": self._loss(self._examples(self._usual, user, 0)),
            "shots": self._loss(self._examples(self._usual, user, SHOTS)),
        }
        if adapter is not None:
            trained, default_prompt = self._trained(adapter)
            encoder = self._usual if default_prompt else self._bare
            with trained.active():
                found["adapter"] = self._loss(self._examples(encoder, user, 0))
        return found

    def _examples(self, encoder: LineEncoder, user: User, shots: int) -> list[Example]:
        before = chat(user.lines[:shots], weight=0)
        return [
            example
            for pair in user.fresh
            for example in encoder.examples({"messages": [*before, *chat([pair])]})
        ]

    @torch.no_grad()
    def _loss(self, examples: Sequence[Example]) -> float:
        sums = ScoreSums()
        for start in range(0, len(examples), _AT_ONCE):
            sums.add(*counted_losses(self._base, examples[start : start + _AT_ONCE]))
        return sums.score().loss

    def _trained(self, adapter: str) -> tuple[TrainableAdapter, bool]:
        """The adapter, and whether it was trained with the template's default system prompt."""
        name, _, version = adapter.partition("@")
        (owner,) = [one for one in self._store.owners() if name in self._store.names(one)]
        ref = self._store.resolve(owner, name, int(version) if version else None)
        manifest, tensors, _ = self._store.load(ref)
        options: dict[str, float | str] = {**manifest.options}
        options["alpha"] = manifest.scale * manifest.rank
        trained = TrainableAdapter(
            self._base, manifest.method, manifest.rank, manifest.seed, manifest.targets, options
        )
        trained.load_tensors(tensors)
        return trained, manifest.default_prompt
