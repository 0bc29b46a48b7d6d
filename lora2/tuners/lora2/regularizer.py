"""The orthogonality regulariser (Eq. 5) on Gram matrices no larger than r x r."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lora2.tuners.base import wide
from lora2.tuners.lora2.stacks import Stacks, exact


def stacked_penalty(stacks: Stacks, *, pairs: str, squared: bool) -> Tensor:
    """Mean over the terms of ``pairs`` (joined by "+") of ||G - I||_F, or its square, a scalar.

    A pair has two terms: "uv" u^T u and v v^T, "UV" U^T U and V V^T (all k x k); "PQ" P^T P and
    Q Q^T with P = u v, Q = U V (r x r, of rank <= k, so with k < r each keeps a floor of
    sqrt(r - k)). P^T P = v^T (u^T u) v and Q Q^T = U (V V^T) U^T reuse the k x k Gram matrices.
    In float32 or wider, without the weight orth_reg_weight. A norm's gradient at zero is zero.
    """
    selected = set(pairs.split("+"))
    inner: list[Tensor] = []  # (n, k, k) each
    outer: list[Tensor] = []  # (n, r, r) each
    with exact(stacks.v.device.type):
        if selected & {"uv", "PQ"}:
            u, v = [wide(x) for x in stacks.u], wide(stacks.v)  # v: (n, k, r)
            gram = torch.cat([_Gram.apply(x, None, False) for x in u])  # u^T u (n, k, k)
            if "uv" in selected:
                inner += [gram, _Gram.apply(v, None, True)]
            if "PQ" in selected:
                outer.append(_Gram.apply(v, gram, False))
        if selected & {"UV", "PQ"}:
            V, U = [wide(x) for x in stacks.V], wide(stacks.U)  # U: (n, r, k)
            gram = torch.cat([_Gram.apply(x, None, True) for x in V])  # V V^T (n, k, k)
            if "UV" in selected:
                inner += [gram, _Gram.apply(U, None, False)]
            if "PQ" in selected:
                outer.append(_Gram.apply(U, gram, True))
        distances = [_distance_to_identity(torch.cat(g), squared) for g in (inner, outer) if g]
        return torch.cat(distances).mean()


class _Gram(torch.autograd.Function):
    """x^T S x for x (n, d, s) and symmetric S (n, d, d), or x S x^T for x (n, s, d) as ``rows``.

    Without S (None) the identity stands for it. The gradient of x is S x (g + g^T): one product,
    laid out as x is, where autograd takes two and a transposition.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, S: Tensor | None, rows: bool) -> Tensor:
        tall = x.mT if rows else x  # (n, d, s)
        inner = tall if S is None else S @ tall  # (n, d, s)
        ctx.save_for_backward(tall, inner)
        ctx.rows = rows
        return tall.mT @ inner  # (n, s, s)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        tall, inner = ctx.saved_tensors
        both = grad + grad.mT
        of_x = both @ inner.mT if ctx.rows else inner @ both
        of_S = tall @ grad @ tall.mT if ctx.needs_input_grad[1] else None  # (n, d, d)
        return of_x, of_S, None


def _distance_to_identity(grams: Tensor, squared: bool) -> Tensor:
    """(m, s, s) -> (m,)"""
    rest: Tensor = grams - torch.eye(grams.shape[-1], device=grams.device, dtype=grams.dtype)
    if squared:
        return rest.square().sum((-2, -1))
    # Unlike sqrt of a sum of squares, this norm has gradient 0 where it is 0.
    norm: Tensor = torch.linalg.vector_norm(rest, dim=(-2, -1))
    return norm
