"""The orthogonal start: factors on which the regulariser is zero before the first step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


@torch.no_grad()
def orthogonal_start(u: Tensor, v: Tensor, U: Tensor, V: Tensor) -> None:
    """Fill the factors of one matrix in place: u (d_in, k), v (k, r), U (r, k), V (k, d_out).

    u^T u = V V^T = I_k, and v v^T = U^T U = I_k where k <= r. The columns of v have equal norms,
    sqrt(min(k, r) / r), and so have the rows of U: every lambda_i starts alike. For k > r it is the
    columns of v and the rows of U that are orthonormal.
    """
    nn.init.orthogonal_(u)
    nn.init.orthogonal_(V)
    v.copy_(_frame(*v.shape))
    U.copy_(_frame(*v.shape).T)


def first_step_ratio(d_out: int, k: int, r: int) -> float:
    """Return LoRA's first step over that of this start at the same learning rate.

    The step is the Frobenius norm of the update after Adam's first step, LoRA's at rank
    min(k, r). Adam moves each number by the rate: LoRA's B moves d_out numbers for each rank, on
    rows of A with squared norm 1/3, so its step is s * rate * sqrt(min(k, r) * d_out / 3). Here
    the signs D of lambda move alone, by s * rate * ||v D U||, which is sqrt(min(k, r)) at k = 1
    and for k >= r: the ratio is sqrt(d_out / 3). Between them the r terms of v D U partly cancel;
    the expectation of ||v D U||^2 over independent frames is below, to first order in the cosines.
    """
    ratio = math.sqrt(d_out / 3)
    if 1 < k < r:
        norm2 = k * k / r * (1 + 2 / math.pi * (r / k - 1) ** 2 / (r - 1))
        ratio *= math.sqrt(k / norm2)
    return ratio


def _frame(k: int, r: int) -> Tensor:
    """Draw r vectors of equal norm in k dimensions, (k, r), whose rows are orthonormal for k <= r.

    The harmonic frame: rows of the real Fourier basis of R^r, a cosine and its sine together, so
    that each column's norm is the same; then a random rotation, order and signs. k = 1 gives
    +-1/sqrt(r).
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
