"""How many singular values may stay, and which those are."""

from __future__ import annotations

import torch
from torch import Tensor


def budget(
    step: int, *, init_total: int, target_total: int, total_step: int, tinit: int, tfinal: int
) -> int:
    """Singular values kept over all matrices after optimiser step ``step`` (counted from 1).

    ``init_total`` up to ``tinit``, ``target_total`` from ``total_step - tfinal`` on, and between
    them the cubic of AdaLoRA, rounded down:
    target + (init - target) (1 - (step - tinit) / (total_step - tinit - tfinal))^3.
    """
    if step <= tinit:
        return init_total
    left = total_step - tfinal - step
    if left <= 0:
        return target_total
    span = total_step - tfinal - tinit
    return target_total + (init_total - target_total) * left**3 // span**3


def top_mask(scores: Tensor, kept: int, none: Tensor | None = None) -> Tensor:
    """(n, r) scores -> (n, r) booleans, True for the ``kept`` largest; of equals the earlier.

    ``none``: (n * r,) times False to start from; made anew where it is not at hand.
    """
    order = scores.flatten().argsort(descending=True, stable=True)  # (n * r,)
    none = torch.zeros_like(order, dtype=torch.bool) if none is None else none
    return none.scatter(0, order[:kept], True).view_as(scores)
