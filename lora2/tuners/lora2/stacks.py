"""The factors of all adapted matrices as a few stacked tensors, and the regulariser on them.

Gathered once per forward pass. One batched product per shape then serves all layers, forward and
backward: the number of kernels does not grow with the number of layers.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor

from lora2.tuners.base import wide

if TYPE_CHECKING:
    from lora2.tuners.lora2.layer import Lora2Linear

# A layer's containers (adapter name -> factor), in the order of ``Factors``.
FACTOR_NAMES = ("lora2_u", "lora2_v", "lora2_lambda", "lora2_U", "lora2_V")


class Factors(NamedTuple):
    """The parameters of n adapted matrices, in one fixed order."""

    u: list[Tensor]  # (d_in, k) each
    v: list[Tensor]  # (k, r)
    lam: list[Tensor]  # (r,)
    U: list[Tensor]  # (r, k)
    V: list[Tensor]  # (k, d_out)


def factors_of(layers: Iterable[nn.Module], adapter_name: str) -> Factors:
    """Collect the parameters of ``adapter_name`` in ``layers``, in their order."""
    factors = Factors([], [], [], [], [])
    for layer in layers:
        # Past the attribute look-up of nn.Module, which at 72 layers costs 0.5 ms a forward pass.
        containers: dict[str, Any] = layer._modules
        for parts, name in zip(factors, FACTOR_NAMES, strict=True):
            factor = containers[name]._parameters.get(adapter_name)
            if factor is None:  # parametrised or pruned: not among the parameters
                factor = getattr(layer, name)[adapter_name]
            parts.append(factor)
    return factors


class Stacks(NamedTuple):
    """n matrices grouped by shape; the g matrices of a group are adjacent."""

    u: list[Tensor]  # (g, d_in, k) per group
    v: Tensor  # (n, k, r)
    lam: Tensor  # (n, r)
    U: Tensor  # (n, r, k)
    V: list[Tensor]  # (g, k, d_out) per group


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[object]:
    """Return a context with autocast off, so that float64 is kept; a null one if it is off."""
    on = torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if on else contextlib.nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """Gather ``tensor`` if FSDP2 has sharded it; every process must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def this_thread() -> int:
    """Identify the thread whose forward pass this is; 0 under torch.compile, which has one."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


def by_shape(*tensors: Sequence[Tensor]) -> list[list[int]]:
    """Group the indices of the matrices whose tensors have the same shapes."""
    groups: dict[tuple[torch.Size, ...], list[int]] = {}
    for index, same in enumerate(zip(*tensors, strict=True)):
        groups.setdefault(tuple(tensor.shape for tensor in same), []).append(index)
    return list(groups.values())


def stack_groups(sizes: Sequence[int], factors: Factors) -> Stacks:
    """Stack the factors, group by group of these ``sizes``."""
    u, v, lam, U, V = factors
    ends = list(itertools.accumulate(sizes, initial=0))
    groups = [slice(*two) for two in itertools.pairwise(ends)]
    with without_autocast(v[0].device.type):
        us = [torch.stack(u[group]) for group in groups]
        Vs = [torch.stack(V[group]) for group in groups]
        return Stacks(us, torch.stack(v), torch.stack(lam), torch.stack(U), Vs)


class _Transposed(torch.autograd.Function):
    """x^T as a contiguous tensor: a CPU multiplies with it two to four times as fast."""

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


def _pairs(stacks: Stacks, scaling: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield u^T (k, d_in) and s * v diag(lambda) U V (k, d_out) of each, in autocast's dtype."""
    device = stacks.lam.device.type
    with without_autocast(device):
        scaled = stacks.v * (scaling * stacks.lam).unsqueeze(1)  # (n, k, r) * (n, 1, r)
        cores = (scaled @ stacks.U).split([len(V) for V in stacks.V])  # (g, k, k) each
        outs = [core @ V for core, V in zip(cores, stacks.V, strict=True)]  # (g, k, d_out)
    ins = [_Transposed.apply(u) for u in stacks.u]  # (g, d_in, k) -> (g, k, d_in)
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        ins, outs = [first.to(dtype) for first in ins], [second.to(dtype) for second in outs]
    both = zip(ins, outs, strict=True)
    return ((u, out) for first, second in both for u, out in zip(first, second, strict=True))


class Adapted:
    """The layers of ``adapter`` by module name, and their stacks during a forward pass."""

    def __init__(self, adapter: str, layers: dict[str, Lora2Linear]) -> None:
        self.adapter, self.layers = adapter, layers
        factors, in_order = self.factors(), list(layers.values())
        groups = by_shape(factors.u, factors.V)
        self._sizes = [len(group) for group in groups]
        self._sorted = [in_order[at] for group in groups for at in group]
        self._stacks: dict[int, Stacks] = {}  # thread -> those of its forward pass under way

    def factors(self) -> Factors:
        return factors_of(self.layers.values(), self.adapter)

    def masks(self) -> list[Tensor]:
        """Which singular values are kept, (r,) for each layer."""
        return [layer.lora2_mask[self.adapter] for layer in self.layers.values()]

    def stacks(self) -> Stacks:
        """Return this forward pass's stacks, or stack the parameters now, on one device."""
        if (current := self._stacks.get(this_thread())) is not None:
            return current
        factors = factors_of(self._sorted, self.adapter)
        if not self._alike(factors):  # sharded, split over devices, or of several dtypes
            factors = Factors(*([whole(p) for p in part] for part in factors))
            device = factors.lam[0].device
            dtype = functools.reduce(torch.promote_types, (lam.dtype for lam in factors.lam))
            factors = Factors(*([p.to(device, dtype) for p in part] for part in factors))
        return stack_groups(self._sizes, factors)

    def cache_pairs(self, on: bool) -> None:
        """If ``on``, stack the parameters once for all layers and cache each layer's pair."""
        if not on or not self._alike(f := factors_of(self._sorted, self.adapter)):
            return
        self._stacks[this_thread()] = stacks = stack_groups(self._sizes, f)
        pairs = _pairs(stacks, self._sorted[0].scaling[self.adapter])
        tracked = torch.is_grad_enabled()
        for layer, pair in zip(self._sorted, pairs, strict=True):
            layer.cache_pair(self.adapter, pair, with_grad=tracked)

    def clear_pairs(self) -> None:
        self._stacks.pop(this_thread(), None)
        for layer in self._sorted:
            layer.clear_cache()

    def _alike(self, factors: Factors) -> bool:
        """Whether the parameters can be stacked: one device, dtype and scaling, none sharded."""
        kinds = {(u.device, u.dtype) for u in factors.u}
        scalings = {layer.scaling[self.adapter] for layer in self.layers.values()}
        sharded = any(isinstance(u, DTensor) for u in factors.u)
        return len(kinds) == len(scalings) == 1 and not sharded


# The orthogonality regulariser (Eq. 5), on Gram matrices no larger than r x r.


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
    with without_autocast(stacks.v.device.type):
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
