"""The factors of all adapted matrices as a few stacked tensors, gathered once per forward.

One batched product per shape then serves all layers, forward and backward: the number of kernels
does not grow with the number of layers, and each parameter's gradient arrives in one piece.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Groups = list[list[int]]


class Stacks(NamedTuple):
    """n matrices sorted by shape: those of one shape, a group, follow each other.

    u: (g, d_in, k) per group; v: (n, k, r); lam: (n, r); U: (n, r, k); V: (g, k, d_out) per group.
    """

    u: list[Tensor]
    v: Tensor
    lam: Tensor
    U: Tensor
    V: list[Tensor]


def exact(device_type: str) -> contextlib.AbstractContextManager[object]:
    """A context without autocast, whose promotion knows no float64; free where it is off."""
    on = torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if on else contextlib.nullcontext()


def by_shape(*tensors: Sequence[Tensor]) -> Groups:
    """Indices of the matrices whose tensors have the same shapes, group by group."""
    groups: dict[tuple[torch.Size, ...], list[int]] = {}
    for index, same in enumerate(zip(*tensors, strict=True)):
        groups.setdefault(tuple(tensor.shape for tensor in same), []).append(index)
    return list(groups.values())


def stack_groups(
    sizes: Sequence[int],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    lam: Sequence[Tensor],
    U: Sequence[Tensor],
    V: Sequence[Tensor],
) -> Stacks:
    """Stack the factors of n matrices, (d_in, k), (k, r), (r,), (r, k), (k, d_out) each.

    They come group by group, of these ``sizes``. ``u`` may be empty: its stacks are left out.
    """
    ends = list(itertools.accumulate(sizes, initial=0))
    groups = [slice(*two) for two in itertools.pairwise(ends)]
    with exact(v[0].device.type):
        return Stacks(
            u=[torch.stack(u[group]) for group in groups] if u else [],
            v=torch.stack(v),
            lam=torch.stack(lam),
            U=torch.stack(U),
            V=[torch.stack(V[group]) for group in groups],
        )


class _Turned(torch.autograd.Function):
    """x^T laid out anew, and so its gradient.

    On a processor a product with a tall u takes two to four times as long as one with its
    transpose; a gradient that is only a transposed view would be copied matrix by matrix.
    """

    generate_vmap_rule = True  # for torch.func, as is setup_context

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.mT.contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.mT.contiguous()


def thin_pairs(stacks: Stacks, scaling: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield u^T (k, d_in) and s * v diag(lambda) U V (k, d_out) of each matrix.

    The two products x @ first^T @ second are the whole update of Eq. 4. Views of the stacks, in the
    dtype of autocast where it is on.
    """
    device = stacks.lam.device.type
    outs = _outs(stacks, scaling)
    ins = [_Turned.apply(one) for one in stacks.u]  # (g, d_in, k) -> (g, k, d_in)
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        ins, outs = [one.to(dtype) for one in ins], [one.to(dtype) for one in outs]
    return zip(_one_by_one(ins), _one_by_one(outs), strict=True)


def untracked_pairs(
    sizes: Sequence[int], u: Sequence[Tensor], v: Sequence[Tensor], lam: Sequence[Tensor],
    U: Sequence[Tensor], V: Sequence[Tensor], scaling: float,
) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """``thin_pairs`` of unstacked factors where no gradient is wanted: u is read where it lies."""
    seconds = _one_by_one(_outs(stack_groups(sizes, (), v, lam, U, V), scaling))
    return zip([one.t() for one in u], seconds, strict=True)


def _outs(stacks: Stacks, scaling: float) -> list[Tensor]:
    """s * v diag(lambda) U V, (g, k, d_out) of each group."""
    with exact(stacks.lam.device.type):
        scaled = stacks.v * (scaling * stacks.lam).unsqueeze(1)  # (n, k, r) * (n, 1, r)
        cores = (scaled @ stacks.U).split([len(V) for V in stacks.V])  # (g, k, k) each
        return [core @ V for core, V in zip(cores, stacks.V, strict=True)]


def _one_by_one(stacked: Sequence[Tensor]) -> Iterator[Tensor]:
    """The matrices of all groups."""
    return itertools.chain.from_iterable(one.unbind() for one in stacked)
