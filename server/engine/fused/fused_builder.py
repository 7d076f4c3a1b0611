"""Builds the fused forward and its graphs, where they fit the base. Knows no settings."""

import logging
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

import torch

from server.adapters.memory.matrices import need_of
from server.adapters.methods.vera.vera import Vera
from server.adapters.residency import ResidentAdapters
from server.bases.layer_shape import layer_shape
from server.bases.model import BaseModel
from server.engine.kv_cache import KVCache
from server.engine.plain.forward import Forward

log = logging.getLogger(__name__)

OnProgress = Callable[[int, int], None]
"""Called with the number of graphs captured, and how many there will be."""


class CapturableForward(NamedTuple):
    """A forward for CUDA; `capture` adds its graphs, once the forward has passed its trial.

    Prompts that cannot be captured are launched one operation after the other; the log says so.

    Raises:
        UnsupportedModel (from `capture`): replayed decodes give other logits than launched ones.
    """

    forward: Forward
    capture: Callable[[OnProgress], None]


def build_fused_forward(
    base: BaseModel,
    adapters: ResidentAdapters,
    kv: KVCache,
    *,
    max_rows: int,
    max_step_tokens: int,
    max_context: int,
    max_rank: int,
    seed: int,
) -> CapturableForward | None:
    """The fused forward of `base`; None where its own forward must run.

    It needs CUDA, 16-bit numbers and Llama-shaped layers.

    Args:
        seed: of the random matrices that new adapters share. They are kept on the device at
            `max_rank`, and A rides in the products of the base.
    """
    if base.device.type != "cuda" or base.dtype not in (torch.bfloat16, torch.float16):
        return None
    if layer_shape(base) is None:
        return None
    # Imported here because they need triton.
    from server.adapters.batch.sites import Riding
    from server.engine.fused.decode_graphs import DecodeGraphs
    from server.engine.fused.decoder import FusedDecoder
    from server.engine.fused.fused_forward import FusedForward
    from server.engine.fused.graph_cache import GraphCache
    from server.engine.fused.prompt_graphs import PromptGraphs
    from server.engine.fused.replay_trial import check_replays

    # It chose the better algorithms: 122 us of products a layer of an 8B Llama at 64
    # rows against 128, and 126 against 138 with A riding (H200, torch 2.11).
    torch.backends.cuda.preferred_blas_library("cublaslt")
    method = Vera()
    loaded = adapters.steps.bases.keep_always(
        method.basis(seed), need_of(method, base, base.targets, max_rank)
    )
    pair = next(iter(loaded.pairs.values()))
    decoder = FusedDecoder(base, Riding(method.basis(seed), pair.a))
    graphs = GraphCache(adapters)
    decodes = DecodeGraphs(decoder, kv, graphs, max_rows=max_rows, max_context=max_context)
    prompts = PromptGraphs(decoder, kv, graphs, max_tokens=max_step_tokens)
    group_sets = [(), (adapters.expected_group(method, loaded, seed),)]

    forward = FusedForward(decoder, adapters, kv, decodes)

    def capture(on_progress: OnProgress) -> None:
        total = len(group_sets) * (len(decodes.sizes) + len(prompts.sizes))
        done = count(1)

        def capture_all(graphs: DecodeGraphs | PromptGraphs) -> None:
            for groups in group_sets:
                for size in reversed(graphs.sizes):  # the largest first
                    graphs.capture(size, groups)
                    on_progress(next(done), total)

        flat = FusedForward(decoder, adapters, kv)
        capture_all(decodes)
        check_replays(base, kv, forward, flat)
        try:
            capture_all(prompts)
            whole = FusedForward(decoder, adapters, kv, decodes, prompts, together=False)
            check_replays(base, kv, whole, flat)
        except Exception as error:  # a capture may raise anything under another torch or driver
            log.warning("prompts run without CUDA graphs, which is slower: %s", error)
        else:
            forward.prompts = prompts

    return CapturableForward(forward, capture)
