"""The adapted linear map: y = W0 x + b + s * x (u v) diag(lambda) (U V)  (Eq. 4)."""

from __future__ import annotations

import math
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import Tensor, nn

from lora2.tuners.base import AdapterLayer, wide
from lora2.tuners.lora2.config import Lora2Config
from lora2.tuners.lora2.stacks import FACTOR_NAMES, this_thread, without_autocast

_RANDOM_START_STD = 0.2  # of init_weights=False: the update shows in any output
_NO_PAIRS: tuple[dict[str, tuple[Tensor, Tensor]], bool] = ({}, False)


class Lora2Linear(AdapterLayer):
    """An ``nn.Linear`` or ``Conv1D`` with LoRA2 adapters; a pruned singular value is a zero."""

    adapter_layer_names = FACTOR_NAMES
    other_param_names = ("r", "k", "scaling", "lora2_dropout", "lora2_mask")

    lora2_lambda: nn.ParameterDict
    lora2_mask: Any  # BufferDict: adapter name -> (r,) booleans

    def _create_containers(self, config: Lora2Config) -> None:
        self.k: dict[str, int] = {}
        self.lora2_mask = BufferDict(persistent=True)
        # Of the forward passes under way, by thread: adapter -> pair, whether gradients flow.
        self._cache: dict[int, tuple[dict[str, tuple[Tensor, Tensor]], bool]] = {}

    def _create(self, adapter_name: str, config: Lora2Config) -> None:
        r, k = config.r, config.k
        self.k[adapter_name] = k
        shapes = ((self.in_features, k), (k, r), (r,), (r, k), (k, self.out_features))
        for name, shape in zip(FACTOR_NAMES, shapes, strict=True):
            getattr(self, name)[adapter_name] = nn.Parameter(torch.empty(shape))
        self.lora2_mask[adapter_name] = torch.ones(r, dtype=torch.bool)
        u, v, lam, U, V = (getattr(self, name)[adapter_name] for name in FACTOR_NAMES)
        if config.init_weights == "orthogonal":
            orthogonal_start(u, v, U, V)
        else:
            std = config.init_std if config.init_weights else _RANDOM_START_STD
            for factor in (u, v, U, V):
                nn.init.normal_(factor, std=std)
        (nn.init.zeros_ if config.init_weights else nn.init.normal_)(lam)

    def _core(self, v: Tensor, lam: Tensor, U: Tensor, adapter_name: str) -> Tensor:
        """s * v diag(lambda) U, the (k, k) middle of the update."""
        return (v * (self.scaling[adapter_name] * lam)) @ U  # (k, r) @ (r, k) -> (k, k)

    def thin_factors(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """u (d_in, k) and s * v diag(lambda) U V (k, d_out), in float32 at least."""
        u, v, lam, U, V = (wide(getattr(self, name)[adapter_name]) for name in FACTOR_NAMES)
        return u, self._core(v, lam, U, adapter_name) @ V

    def kept(self, adapter_name: str) -> Tensor:
        """Which singular values survive, (r,)."""
        mask: Tensor = self.lora2_mask[adapter_name]
        return mask

    def kept_parameters(self, adapter_name: str) -> int:
        """k (d_in + d_out) + n (2 k + 1) with n singular values left; none for n = 0."""
        k, n = self.k[adapter_name], int(self.kept(adapter_name).sum())
        return k * (self.in_features + self.out_features) + n * (2 * k + 1) if n else 0

    def pair(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """u^T (k, d_in) and s * v diag(lambda) U V (k, d_out), in the dtype of autocast, if on."""
        pairs, with_grad = self._cache.get(this_thread(), _NO_PAIRS)
        pair = pairs.get(adapter_name)
        if pair is not None and (not torch.is_grad_enabled() or _may_differentiate(with_grad)):
            return pair
        u, v, lam, U, V = (getattr(self, name)[adapter_name] for name in FACTOR_NAMES)
        device = u.device.type
        with without_autocast(device):
            # (k, d_in); (k, k) @ (k, d_out)
            first, second = u.T, self._core(v, lam, U, adapter_name) @ V
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            return first.to(dtype), second.to(dtype)
        return first, second

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., d_in) -> (..., d_out), in the base layer's output dtype."""
        off = self.disable_adapters or self.merged
        if off or not _is_plain(self.base_layer) or x.dim() < 2 or args or kwargs:
            return super().forward(x, *args, **kwargs)
        rows = x.flatten(0, -2)  # (..., d_in) -> (t, d_in)
        result: Tensor = self.base_layer(rows)  # (t, d_out), only used here: added to in place
        for name in self.active_adapters:
            if name in self.r:
                hidden, second = self._narrow(rows, name)
                if result.dtype == hidden.dtype == second.dtype:
                    result.addmm_(hidden, second)  # (t, k) @ (k, d_out)
                else:
                    result += hidden @ second
        return result.view(*x.shape[:-1], self.out_features)

    def _narrow(self, x: Tensor, adapter_name: str) -> tuple[Tensor, Tensor]:
        first, second = self.pair(adapter_name)
        return nn.functional.linear(self._dropped(x, adapter_name, first.dtype), first), second

    def cache_pair(self, adapter_name: str, pair: tuple[Tensor, Tensor], with_grad: bool) -> None:
        """Keep the pair of ``adapter_name`` for the forward pass under way in this thread."""
        pairs, _ = self._cache.get(this_thread(), ({}, with_grad))
        pairs[adapter_name] = pair
        self._cache[this_thread()] = pairs, with_grad

    def clear_cache(self) -> None:
        """Forget the pairs of this thread's forward pass."""
        self._cache.pop(this_thread(), None)


def _may_differentiate(with_grad: bool) -> bool:
    """Tell whether gradients can flow through a cached pair, made ``with_grad`` or without.

    Not under checkpointing, which hooks saved tensors: the backward pass runs the layer again, when
    its pair is cleared, and must find the operations of the first time.
    """
    if not with_grad or torch.compiler.is_compiling():
        return with_grad
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is None


def _is_plain(module: nn.Module) -> bool:
    """Whether calling a module is one product and a bias, without hooks."""
    m = module
    hooked = m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
    return type(m) is nn.Linear and not hooked and "forward" not in vars(m)


@torch.no_grad()
def orthogonal_start(u: Tensor, v: Tensor, U: Tensor, V: Tensor) -> None:
    """Fill the factors of one matrix in place: u (d_in, k), v (k, r), U (r, k), V (k, d_out).

    u^T u = V V^T = I_k, and v v^T = U^T U = I_k where k <= r; for k > r the columns of v and the
    rows of U are orthonormal. They have equal norms in any case: every lambda_i starts alike.
    """
    nn.init.orthogonal_(u)
    nn.init.orthogonal_(V)
    v.copy_(_frame(*v.shape))
    U.copy_(_frame(*v.shape).T)


def _frame(k: int, r: int) -> Tensor:
    """Draw r vectors of equal norm in k dimensions, (k, r), whose rows are orthonormal for k <= r.

    The harmonic frame: rows of the real Fourier basis of R^r, cosines with their sines; then a
    random rotation, order and signs. k = 1 gives +-1/sqrt(r).
    """
    if k > r:
        return nn.init.orthogonal_(torch.empty(k, r))
    place = torch.arange(r) / r
    rows = [torch.full((r,), math.sqrt(1 / r))] if k % 2 or k == r else []  # frequency 0
    for frequency in range(1, (k - len(rows)) // 2 + 1):
        angle = 2 * math.pi * frequency * place  # (r,)
        rows += [math.sqrt(2 / r) * angle.cos(), math.sqrt(2 / r) * angle.sin()]
    if len(rows) < k:  # k = r, even: the highest frequency has no sine
        rows.append(torch.cos(math.pi * r * place) / math.sqrt(r))
    rotation = nn.init.orthogonal_(torch.empty(k, k))
    signs = torch.randint(0, 2, (r,)) * 2 - 1
    return (rotation @ torch.stack(rows))[:, torch.randperm(r)] * signs  # (k, k) @ (k, r)
