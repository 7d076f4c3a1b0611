"""What a start takes in memory and time where the settings leave it open."""

import gc
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from server.bases.base_files import outline_base
from server.config import Settings
from server.engine.kv_cache import KVCache, token_bytes
from server.wiring.process import slow_imports
from server.wiring.sizes import kv_memory_mb
from tests.models import tiny_base


@pytest.mark.parametrize(
    ("max_context", "options", "mebibytes"),
    [
        (1024, {}, 144),  # Porch: 16 contexts of 1024 tokens, each token 9 KiB
        (1024, {"max_context": 256}, 36),
        (1024, {"max_context": 4096}, 144),
        (1000, {}, 142),  # a context takes whole blocks: 63 of 16 tokens
        (1, {}, 3),
        (131_072, {}, 512),
        (1024, {"kv_memory_mb": 700}, 700),
        (1024, {"kv_memory_mb": 8}, 8),
    ],
)
def test_keys_and_values_get_memory_for_16_contexts_of_the_base(
    max_context: int, options: dict[str, Any], mebibytes: int
) -> None:
    porch = outline_base("porch")
    cpu = torch.device("cpu")
    served = replace(porch, dtype=torch.float32, device=cpu, max_context=max_context)
    assert token_bytes(served) == 9 * 1024
    assert kv_memory_mb(Settings(**options), served) == mebibytes


@pytest.mark.parametrize("block_tokens", [1, 16, 1024])
def test_the_least_default_holds_blocks_of_any_size(block_tokens: int) -> None:
    base = replace(tiny_base("llama"), max_context=1)
    memory_mb = kv_memory_mb(Settings(kv_block_tokens=block_tokens), base)
    assert KVCache(base, memory_mb=memory_mb, block_tokens=block_tokens).num_blocks >= 16


def test_the_collector_rests_during_slow_imports_and_leaves_alone_what_they_made() -> None:
    made = list[list[int]]()
    with pytest.raises(ImportError), slow_imports():
        assert not gc.isenabled()
        made.append([])
        raise ImportError
    assert gc.isenabled()
    assert not any(found is made[0] for found in gc.get_objects())


def test_serving_imports_no_package_that_it_does_not_need() -> None:
    """transformers imports some of these where they are installed, if one asks it for too much."""
    heavy = {"matplotlib", "pandas", "peft", "psutil", "pytest", "scipy", "sklearn", "tensorboard"}
    code = (
        "import gc, sys; gc.disable(); import server.cli.running.http_server; "
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
