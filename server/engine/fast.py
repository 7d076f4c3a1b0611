"""The fastest way there is to run a base on its device. Knows no settings and no requests."""

from collections.abc import Callable

import torch

from server.adapters.matrices import need_of
from server.adapters.residency import ResidentAdapters
from server.adapters.vera import Vera
from server.bases.model import BaseModel
from server.engine.forward import Forward
from server.engine.kv_cache import KVCache

Progress = Callable[[int, int], None]
"""Told how many graphs of how many are captured."""


class Fast:
    """A forward for CUDA, and its graphs to be captured once it has passed its trial."""

    def __init__(self, forward: Forward, capture: Callable[[Progress], None]) -> None:
        self.forward = forward
        self.capture = capture


def fast_forward(
    base: BaseModel,
    adapters: ResidentAdapters,
    kv: KVCache,
    *,
    max_rows: int,
    max_context: int,
    max_rank: int,
    seed: int,
) -> Fast | None:
    """Kernels and graphs over `base`; None where they do not apply, and its own forward runs.

    They are for CUDA, 16-bit numbers and the layers that `FusedDecoder` knows.

    Args:
        seed: of the random matrices that new adapters share. They are kept on the device at
            `max_rank`, and A rides in the products of the base.
    """
    if base.device.type != "cuda" or base.dtype not in (torch.bfloat16, torch.float16):
        return None
    # Only here: an installation for a CPU has no triton.
    from server.adapters.sites import Riding
    from server.engine.decoder import FusedDecoder
    from server.engine.fused_forward import FusedForward
    from server.engine.graphs import DecodeGraphs

    if not FusedDecoder.knows(base):
        return None
    # Its choice of algorithms was the better one: 122 us of products a layer of an 8B Llama at 64
    # rows against 128, and 126 against 138 with A riding (H200, torch 2.11).
    torch.backends.cuda.preferred_blas_library("cublaslt")
    method = Vera()
    held = adapters.hold(method.basis(seed), need_of(method, base, base.targets, max_rank))
    pair = next(iter(held.bases.values()))
    decoder = FusedDecoder(base, Riding(method.basis(seed), pair.a))
    graphs = DecodeGraphs(decoder, kv, adapters, max_rows=max_rows, max_context=max_context)
    companies = [(), (adapters.company(method, held, seed),)]
    return Fast(
        FusedForward(decoder, adapters, kv, graphs), lambda told: graphs.capture(companies, told)
    )
