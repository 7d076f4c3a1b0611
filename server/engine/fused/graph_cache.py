"""A cache of CUDA graphs: captured at first use, the least recently used dropped.

All share one pool of memory, so the output of one must be copied before another is replayed. A
graph reads the matrices of its groups at fixed addresses: it keeps them alive until they leave the
device, and is dropped then. Knows no model.
"""

from collections.abc import Callable, Hashable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from server.adapters.batch.fused_plan import FusedGroup, FusedPlan
from server.adapters.batch.group_cache import GroupCache
from server.adapters.batch.group_inputs import GroupInputs
from server.adapters.residency import ResidentAdapters
from server.engine.device import HIGHEST_STREAM_PRIORITY
from server.engine.fused.decoder import NoAdapters, SiteAdapters
from server.engine.kernels.mlp_gate import gate_mul

MAX_GRAPHS: Final = 256
"""Each holds some hundred kB of launches."""


@dataclass(frozen=True, eq=False)
class CapturedGraph:
    """A graph, the adapters' inputs that it reads, and the logits that it writes."""

    graph: torch.cuda.CUDAGraph
    inputs: Seq[GroupInputs]
    logits: Tensor

    def replay(self, pages: Seq[np.ndarray]) -> Tensor:
        """Replay with these pages of each group, from static inputs; gives the logits."""
        for inputs, of_group in zip(self.inputs, pages, strict=True):
            inputs.fill(of_group)
        self.graph.replay()
        return self.logits


class GraphCache:
    """Graphs on the current CUDA device, for one thread.

    Args:
        adapters: the graphs read their vectors; None: the base alone is served.
    """

    def __init__(self, adapters: ResidentAdapters | None) -> None:
        self._adapters = adapters
        self._cache: GroupCache[CapturedGraph] = (
            GroupCache(MAX_GRAPHS) if adapters is None else adapters.steps.group_cache(MAX_GRAPHS)
        )
        self._pool = torch.cuda.graph_pool_handle()
        # Nodes of a graph keep the priority of the stream that they were captured on.
        self._stream = torch.cuda.Stream(priority=HIGHEST_STREAM_PRIORITY)

    def find(
        self,
        groups: Seq[FusedGroup],
        name: Hashable,
        prepare: Callable[[], Seq[GroupInputs]],
        run: Callable[[Seq[GroupInputs]], Tensor],
    ) -> CapturedGraph:
        """The graph of `groups` under `name`. Without one, captures `run`, which gives logits.

        A capture calls `run` twice. So `prepare` makes its inputs, and clears the static tensors of
        what earlier steps left there: `run` must write only what nobody reads.
        """
        captured = self._cache.get(groups, name)
        if captured is None:
            captured = self._capture(prepare(), run)
            self._cache.put(groups, name, captured)
        return captured

    def adapters_of(self, groups: Seq[FusedGroup], inputs: Seq[GroupInputs]) -> SiteAdapters:
        """The `SiteAdapters` of a step with these groups."""
        if not groups:
            return NoAdapters()
        assert self._adapters is not None
        return self._adapters.steps.site_adapters(
            FusedPlan(tuple(groups), (), {}), gate_mul, inputs
        )

    @torch.inference_mode()
    def _capture(
        self, inputs: Seq[GroupInputs], run: Callable[[Seq[GroupInputs]], Tensor]
    ) -> CapturedGraph:
        torch.cuda.synchronize()
        with torch.cuda.stream(self._stream):
            # Once outside of the graph: this compiles kernels and chooses the products' algorithms.
            run(inputs)
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                logits = run(inputs)
            finally:
                graph.capture_end()
        torch.cuda.synchronize()
        return CapturedGraph(graph, inputs, logits)
