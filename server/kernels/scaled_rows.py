"""Multiplies rows by their own adapter's vector, forward and backward, each in one pass.

    out[t] = onto[t] + x[t] * v[share of t]
    gx[t] = g[t] * v[share of t]        gv[s] = sum of g[t] * x[t] over the rows of share s

Sums over rows are made tile by tile and then added in a fixed order. Knows no method.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from server.kernels.launch_parts import cdiv

_ROWS, _COLUMNS, _WARPS = 64, 128, 8


def scaled_rows(
    x: Tensor, vectors: Tensor, onto: Tensor | None, starts: Tensor | None, most: int
) -> Tensor:
    """See `server.adapters.methods.row_shares.scaled`; `reference_scaled` there is its plain
    reference.

    Args:
        starts: each share's first row, and the end of the last, int32 [shares + 1]; None: there is
            one, and vectors is [n].
        most: rows of the largest share.
    """
    out: Tensor = _Scaled.apply(x, vectors, onto, starts, most)  # type: ignore[no-untyped-call]
    return out


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        vectors: Tensor,
        onto: Tensor | None,
        starts: Tensor | None,
        most: int,
    ) -> Tensor:
        ctx.save_for_backward(x, vectors)
        ctx.starts = starts
        ctx.grid = _grid(x.shape[1], starts, most)
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        other = x if onto is None else onto
        _scale[ctx.grid](
            x, vectors, other, out, x if starts is None else starts, *x.shape,
            x.stride(0), vectors.stride(0), other.stride(0),
            ADD=onto is not None, ONE=starts is None,
            ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=_WARPS,
        )  # fmt: skip
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None, None]:
        x, vectors = ctx.saved_tensors
        starts: Tensor | None = ctx.starts
        tiles, _, many = ctx.grid
        g = g.contiguous()
        gx = torch.empty_like(g) if ctx.needs_input_grad[0] else None
        sums = torch.empty((many, tiles, x.shape[1]), dtype=torch.float32, device=x.device)
        _scale_back[ctx.grid](
            g, x, vectors, g if gx is None else gx, sums, x if starts is None else starts,
            *x.shape, x.stride(0), vectors.stride(0), tiles,
            WRITE=gx is not None, ONE=starts is None,
            ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=_WARPS,
        )  # fmt: skip
        g_vectors = sums.sum(1).to(vectors.dtype).view(vectors.shape)
        return gx, g_vectors, g if ctx.needs_input_grad[2] else None, None, None


def _grid(width: int, starts: Tensor | None, most: int) -> tuple[int, int, int]:
    """Tiles of rows of the largest share, tiles of columns, shares."""
    return cdiv(most, _ROWS), cdiv(width, _COLUMNS), 1 if starts is None else len(starts) - 1


@triton.jit
def _tile(starts_ptr, tokens, width, ONE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The rows [ROWS, 1] and columns [1, COLUMNS] of this program, and which of them exist."""
    if ONE:
        begin, end = 0, tokens
    else:
        begin = tl.load(starts_ptr + tl.program_id(2))
        end = tl.load(starts_ptr + tl.program_id(2) + 1)
    row = begin + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < end)[:, None] & (column < width)[None, :]
    return row.to(tl.int64)[:, None], column[None, :], inside


@triton.jit
def _scale(
    x_ptr,
    v_ptr,
    onto_ptr,
    out_ptr,
    starts_ptr,
    tokens,
    width,
    x_stride,
    v_stride,
    onto_stride,
    ADD: tl.constexpr,
    ONE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row, column, inside = _tile(starts_ptr, tokens, width, ONE, ROWS, COLUMNS)
    vector = v_ptr + tl.program_id(2).to(tl.int64) * v_stride + column
    v = tl.load(vector, mask=column < width, other=0.0).to(tl.float32)
    out = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32) * v
    if ADD:
        onto = tl.load(onto_ptr + row * onto_stride + column, mask=inside, other=0.0)
        out += onto.to(tl.float32)
    tl.store(out_ptr + row * width + column, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _scale_back(
    g_ptr,
    x_ptr,
    v_ptr,
    gx_ptr,
    sums_ptr,
    starts_ptr,
    tokens,
    width,
    x_stride,
    v_stride,
    tiles,
    WRITE: tl.constexpr,
    ONE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row, column, inside = _tile(starts_ptr, tokens, width, ONE, ROWS, COLUMNS)
    g = tl.load(g_ptr + row * width + column, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    if WRITE:
        vector = v_ptr + tl.program_id(2).to(tl.int64) * v_stride + column
        v = tl.load(vector, mask=column < width, other=0.0).to(tl.float32)
        gx = (g * v).to(gx_ptr.dtype.element_ty)
        tl.store(gx_ptr + row * width + column, gx, mask=inside)
    place = (tl.program_id(2).to(tl.int64) * tiles + tl.program_id(0)) * width + column
    total = tl.sum(g * x, axis=0)[None, :]
    tl.store(sums_ptr + place, total, mask=column < width)
