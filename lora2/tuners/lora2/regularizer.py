"""The orthogonality regulariser (Eq. 5) on Gram matrices no larger than r x r."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def orthogonality_penalty(
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    U: Sequence[Tensor],
    V: Sequence[Tensor],
    *,
    pairs: str = "uv+UV+PQ",
    squared: bool = False,
) -> Tensor:
    """Mean over the selected terms of all matrices of ||G - I||_F (or its square).

    A pair has two terms: "uv" u^T u and v v^T, "UV" U^T U and V V^T (all k x k); "PQ" P^T P and
    Q Q^T with P = u v, Q = U V (r x r, of rank <= k, so with k < r each keeps a floor of
    sqrt(r - k)). P^T P = v^T (u^T u) v and Q Q^T = U (V V^T) U^T reuse the k x k Gram matrices.

    Args:
        u, v, U, V: one tensor per matrix, (d_in, k), (k, r), (r, k), (k, d_out); k and r are the
            same for all, d_in and d_out may differ.
        pairs: the pairs to add up, joined by "+".
        squared: square the Frobenius norms.

    Returns:
        A scalar in float32 or wider, without the weight orth_reg_weight. The gradient of a norm at
        zero is zero.
    """
    selected = set(pairs.split("+"))
    inner: list[Tensor] = []  # (n, k, k) each
    outer: list[Tensor] = []  # (n, r, r) each
    with torch.autocast(u[0].device.type, enabled=False):
        if selected & {"uv", "PQ"}:
            order, gram = _gram_by_shape(u, lambda x: x.mT @ x)  # (n, d_in, k) -> (n, k, k)
            vs = _stack(v, order)  # (n, k, r)
            if "uv" in selected:
                inner += [gram, vs @ vs.mT]
            if "PQ" in selected:
                outer.append(vs.mT @ gram @ vs)
        if selected & {"UV", "PQ"}:
            order, gram = _gram_by_shape(V, lambda x: x @ x.mT)  # (n, k, d_out) -> (n, k, k)
            Us = _stack(U, order)  # (n, r, k)
            if "UV" in selected:
                inner += [gram, Us.mT @ Us]
            if "PQ" in selected:
                outer.append(Us @ gram @ Us.mT)
        distances = [_distance_to_identity(torch.cat(g), squared) for g in (inner, outer) if g]
        return torch.cat(distances).mean()


def _gram_by_shape(
    factors: Sequence[Tensor], gram: Callable[[Tensor], Tensor]
) -> tuple[list[int], Tensor]:
    """One batched product per shape: the order of the matrices, and their (n, k, k) in it."""
    groups: dict[torch.Size, list[int]] = {}
    for index, factor in enumerate(factors):
        groups.setdefault(factor.shape, []).append(index)
    grams = [gram(_stack(factors, group)) for group in groups.values()]
    order = [index for group in groups.values() for index in group]
    return order, grams[0] if len(grams) == 1 else torch.cat(grams)


def _stack(tensors: Sequence[Tensor], order: Sequence[int]) -> Tensor:
    stacked = torch.stack([tensors[index] for index in order])
    return stacked if stacked.dtype == torch.float64 else stacked.float()


def _distance_to_identity(grams: Tensor, squared: bool) -> Tensor:
    """(m, s, s) -> (m,)"""
    rest = grams - torch.eye(grams.shape[-1], device=grams.device, dtype=grams.dtype)
    if squared:
        return rest.square().sum((-2, -1))
    # Unlike sqrt of a sum of squares, this norm has gradient 0 where it is 0.
    return torch.linalg.vector_norm(rest, dim=(-2, -1))
