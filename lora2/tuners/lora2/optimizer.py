"""An optimiser in which LoRA2's singular values have a learning rate of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from lora2.tuners.lora2.layer import Lora2Linear

Ratio = float | Literal["auto"]


def create_lora2_optimizer(
    model: nn.Module, optimizer_cls: Callable[..., Optimizer], *,
    lr: float, lambda_lr_ratio: Ratio = "auto", **kwargs: Any,
) -> Optimizer:  # fmt: skip
    """Return an optimiser of ``model``'s trainable parameters, lambda at ``lambda_lr_ratio * lr``.

    "auto" takes sqrt(d_out / 3) for each matrix of d_out outputs (a little more for 1 < k < r, see
    ``first_step_ratio``). With ``Lora2Config(init_weights="orthogonal")`` the first step of Adam
    then changes W0 as much as LoRA's at rank k and the same lora_alpha / r does.

    Biases and norms get no weight decay, everything else ``weight_decay`` of ``kwargs``. AdamW
    multiplies it by the group's rate: lambda decays by lambda_lr_ratio * lr * weight_decay a step.

    Args:
        optimizer_cls: a class of torch.optim, or one that takes parameter groups as they do.
        lr: learning rate of everything but lambda.
        lambda_lr_ratio: the factor for lambda; 1 is the published optimiser.
        kwargs: passed on to ``optimizer_cls``.

    Raises:
        ValueError: the model has no LoRA2 adapter that is trained, or the ratio is not positive.
    """
    decayed, plain = list[nn.Parameter](), list[nn.Parameter]()
    for name, p in model.named_parameters():
        if p.requires_grad:  # biases and the weights of norms, as transformers' Trainer has it
            norm = p.ndim == 1 and "lora2_lambda" not in name
            (plain if name.endswith("bias") or norm else decayed).append(p)
    groups = [{"params": decayed, "lr": lr}, {"params": plain, "lr": lr, "weight_decay": 0.0}]
    return optimizer_cls(lambda_groups(model, groups, lambda_lr_ratio), lr=lr, **kwargs)


def lambda_groups(
    model: nn.Module, groups: Iterable[dict[str, Any]], lambda_lr_ratio: Ratio = "auto"
) -> list[dict[str, Any]]:
    """Return ``groups`` (with "lr") with every trained lambda in a group with its own rate."""
    auto = lambda_lr_ratio == "auto"
    if not (auto or (isinstance(lambda_lr_ratio, int | float) and 0 < lambda_lr_ratio < math.inf)):
        raise ValueError(f"lambda_lr_ratio={lambda_lr_ratio!r} (allowed: 'auto' or a number > 0)")
    ratios: dict[int, float] = {
        id(lam): first_step_ratio(layer.out_features, layer.k[name], layer.r[name])
        if auto
        else float(lambda_lr_ratio)
        for layer in model.modules()
        if isinstance(layer, Lora2Linear)
        for name, lam in layer.lora2_lambda.items()
        if lam.requires_grad
    }
    if not ratios:
        raise ValueError(
            "the model has no LoRA2 adapter in training: call get_peft_model(model, "
            "Lora2Config(...)) first, or set_adapter(name) to train one that is loaded"
        )
    split: list[dict[str, Any]] = []
    for group in groups:
        parts: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            parts.setdefault(ratios.get(id(parameter), 1.0), []).append(parameter)
        split += [{**group, "params": p, "lr": group["lr"] * ratio} for ratio, p in parts.items()]
    return split


def first_step_ratio(d_out: int, k: int, r: int) -> float:
    """Return LoRA's first step (of Adam, in Frobenius norm) over that of the orthogonal start.

    Adam moves each number by the rate. LoRA's B moves d_out numbers for each rank, on rows of A
    with squared norm 1/3: s * rate * sqrt(min(k, r) * d_out / 3). Here the signs D of lambda move
    alone, by s * rate * ||v D U||, which is sqrt(min(k, r)) at k = 1 and for k >= r: the ratio is
    sqrt(d_out / 3). Between them the r terms of v D U partly cancel; below is the expectation of
    ||v D U||^2 over independent frames, to first order in the cosines.
    """
    norm2 = k * k / r * (1 + 2 / math.pi * (r / k - 1) ** 2 / (r - 1)) if 1 < k < r else k
    return math.sqrt(d_out / 3) * math.sqrt(k / norm2)
