"""Factories of served bases; one thread, for the suite shares its cores."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from server.bases.model import BaseModel
from tests.adapters.served import Served
from tests.models import tiny_base

Serve = Callable[..., Served]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Make a `Served` of a base (a tiny Llama unless given); its threads end with the test."""
    made: list[Served] = []

    def new(base: BaseModel | None = None, **options: Any) -> Served:
        made.append(Served(base or tiny_base("llama"), tmp_path / str(len(made)), **options))
        return made[-1]

    yield new
    for served in made:
        served.adapters.close()
