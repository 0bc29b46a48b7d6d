"""The frozen factors of LoRA-XS, from the weight without the adapters merged into it."""

from __future__ import annotations

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor


@torch.no_grad()
def frozen_weight(layer: BaseTunerLayer) -> Tensor:
    """The base weight without the adapters merged into it, float32, in the base layer's layout.

    Also looks below: the layer may wrap a layer of another tuner that has merged adapters.
    """
    weight = layer.get_base_weight().float()
    node = layer
    while isinstance(node, BaseTunerLayer):
        for name in node.merged_adapters:
            weight = weight - node.get_delta_weight(name).float()
        node = node.base_layer
    return weight


def truncated_svd(weight: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """A (d_in, r) = U_r Sigma_r and B (r, d_out) = V_r^T of W (d_in, d_out).

    A B is the best approximation of W of rank r (Eckart-Young). A singular pair is determined up to
    its sign: the entry of U's column with the largest magnitude is made positive, so that the same
    weight gives the same A and B whatever library computes them.

    Raises:
        ValueError: r > min(d_in, d_out).
    """
    if r > min(weight.shape):
        raise ValueError(
            f"r = {r} is more than the {min(weight.shape)} singular values of a weight of shape "
            f"{tuple(weight.shape)}"
        )
    u, sigma, vh = torch.linalg.svd(weight, full_matrices=False)
    u, sigma, vh = u[:, :r], sigma[:r], vh[:r]
    largest = u.abs().argmax(dim=0, keepdim=True)  # (d_in, r) -> (1, r)
    sign = u.gather(0, largest).sign()
    return (u * (sign * sigma)).contiguous(), (vh * sign.T).contiguous()
