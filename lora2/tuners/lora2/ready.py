"""What a layer is handed for a forward pass, and its shortest way where no gradient is wanted."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Ready(NamedTuple):
    """All that y = x W0^T + b + s x (u v) diag(lambda) (U V) takes, of one dtype.

    first: u^T (k, d_in); second: s v diag(lambda) U V (k, d_out); bias: (d_out,) or None;
    weight: W0 (d_out, d_in), the parameter itself: its data may be brought in during the pass.
    """

    first: Tensor
    second: Tensor
    bias: Tensor | None
    weight: Tensor

    def suits(self, x: Tensor) -> bool:
        """Whether ``forward`` may take ``x``; gradients or autocast may have begun in between."""
        return (
            x.dim() >= 2
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled(x.device.type)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) -> (..., d_out): the wide product is added to the thin ones.

        The thin ones then read x and write y while the processor's cache still holds them. The base
        layer is not called: hooks that torch has on all modules do not see it.
        """
        rows = x.flatten(0, -2)  # (..., d_in) -> (t, d_in)
        hidden = narrow(self.first, rows)  # (t, k)
        if self.bias is None:
            result = torch.mm(hidden, self.second)  # (t, k) @ (k, d_out)
        else:
            result = torch.addmm(self.bias, hidden, self.second)
        result.addmm_(rows, self.weight.t())  # (t, d_in) @ (d_in, d_out)
        return result.view(*x.shape[:-1], result.shape[-1])


def narrow(first: Tensor, rows: Tensor) -> Tensor:
    """(k, d_in), (t, d_in) -> (t, k), a transposed view.

    On a processor in float32 this order takes half the time of rows @ first^T, and so does the
    product that reads the result.
    """
    return torch.mm(first, rows.t()).t()  # (k, d_in) @ (d_in, t)


class Handed:
    """What the model's stacks gave a layer for the forward pass under way.

    pairs: adapter -> u^T (k, d_in) and s v diag(lambda) U V (k, d_out); tracked: whether gradients
    flow through them; ready: the shortest way, where there is one.
    """

    __slots__ = ("pairs", "ready", "tracked")

    def __init__(self) -> None:
        self.pairs: dict[str, tuple[Tensor, Tensor]] = {}
        self.tracked = False
        self.ready: Ready | None = None

    def take_back(self) -> None:
        """Forget it all."""
        self.pairs.clear()
        self.ready = None
