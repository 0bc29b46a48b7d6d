"""PEFT plumbing that our tuners share: put a layer in place, merge it, undo the merge.

A tuner layer here is a ``BaseTunerLayer`` with ``get_delta_weight(adapter_name)``, which returns
the update in the layout of the base weight: (d_out, d_in) for ``nn.Linear``, (d_in, d_out) for
``Conv1D``.
"""

from __future__ import annotations

import warnings

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def replace_module(parent: nn.Module, child_name: str, new_module: nn.Module) -> None:
    """Put ``new_module`` in the place of ``parent.child_name``.

    PEFT's own version also copies ``.weight`` from the replaced module. A ModulesToSaveWrapper of a
    classification head has none, so that merge_and_unload fails there. Our layers move their
    weights to the base layer's device when they make them: nothing else is left to do.
    """
    setattr(parent, child_name, new_module)


def base_linear(target: nn.Module, name: str) -> nn.Linear | Conv1D:
    """Return the ``nn.Linear`` or ``Conv1D`` under ``target``, the module called ``name``.

    Raises:
        TypeError: the module is something else, or its weight is quantized to integers.
    """
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    if not isinstance(base, nn.Linear | Conv1D) or not base.weight.is_floating_point():
        raise TypeError(
            f"{name} is a {type(base).__name__}; only torch.nn.Linear and transformers' Conv1D "
            f"with floating-point weights can be adapted: take it out of target_modules or name "
            f"it in exclude_modules"
        )
    return base


@torch.no_grad()
def merge_into_base(
    layer: BaseTunerLayer, safe_merge: bool = False, adapter_names: list[str] | None = None
) -> None:
    """Add each adapter's update to the base weight, in float32 at least, rounded once to its dtype.

    Args:
        adapter_names: the adapters to merge; the active ones when None.

    Raises:
        ValueError: ``safe_merge`` is set and the sum is not finite; the base weight is untouched.
    """
    for name in check_adapters_to_merge(layer, adapter_names):
        if name not in layer._get_available_adapters():
            continue
        weight = layer.get_base_weight()
        merged = (wide(weight) + layer.get_delta_weight(name)).to(weight.dtype)
        if safe_merge and not torch.isfinite(merged).all():
            raise ValueError(
                f"merging adapter {name!r} gives weights that are not finite: it diverged, or its "
                f"file is damaged; load another checkpoint of it"
            )
        layer.set_base_weight(merged)
        layer.merged_adapters.append(name)


@torch.no_grad()
def unmerge_from_base(layer: BaseTunerLayer) -> None:
    """Subtract every merged adapter from the base weight again, the last one first."""
    if not layer.merged:
        warnings.warn("nothing is merged, so nothing was unmerged", stacklevel=3)
    while layer.merged_adapters:
        name = layer.merged_adapters.pop()
        weight = layer.get_base_weight()
        layer.set_base_weight((wide(weight) - layer.get_delta_weight(name)).to(weight.dtype))


def wide(tensor: Tensor) -> Tensor:
    """In float32, or float64 where it is that."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
