"""The settings of LoRA2, with every impossible value refused before a model is touched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lora2.tuners import base_config as allow
from lora2.tuners.base_config import AdapterConfig, Rules, is_int

ORTHOGONALITY = ("uv", "UV", "uv+UV", "PQ", "uv+UV+PQ", "none")


@dataclass
class Lora2Config(AdapterConfig):
    """Settings of LoRA2 (arXiv 2408.06854, Eq. 4-9); defaults follow the paper and its scripts.

    Learning rates to begin with: 2e-3 for the published start, 1e-3 for the orthogonal one. Best at
    lora_alpha = 4 r on held-out rows of CoLA after 2,000 steps, the former with init_std = 0.05:
    results/small/rates.csv, part cola-2000, rows lora2-k8-published and lora2-k8. docs/library.md.

    Args:
        r: rank at the start, the number of singular values of one adapted matrix.
        k: inner rank of u, v, U and V; the update of one matrix has rank <= min(k, r), so a k
            above r or a matrix's width gains no rank. All arguments of ``AdapterConfig`` as there.
        bias: the biases that are trained: "none", "all" or "lora2_only".
        init_weights: the start. True, as published: lambda zero, u, v, U, V from N(0, init_std^2).
            "orthogonal": lambda zero, u^T u = V V^T = v v^T = U^T U = I_k, where the penalties of
            "uv" and "UV" are zero (k <= r; else see ``orthogonal_start``); for
            create_lora2_optimizer, which gives lambda a learning rate of its own. False: a random
            non-zero update.
        init_std: standard deviation of u, v, U, V at the published start.
        target_r: mean rank of a matrix after training; None or r prunes nothing.
        tinit: optimiser steps before pruning starts.
        tfinal: optimiser steps at the end with the final ranks.
        deltaT: optimiser steps between two allocations.
        beta1: smoothing of the sensitivity |w dL/dw| (Algorithm 1).
        beta2: smoothing of the sensitivity's deviation (Algorithm 1).
        orth_reg_weight: weight of the orthogonality regulariser in the loss.
        orthogonality: the regularised pairs of Eq. 5, one of ORTHOGONALITY.
        orth_squared: square the Frobenius norms of the regulariser.
        importance: "factored" (Eq. 9) or "full" (Eq. 8).
        total_step: optimiser steps of the whole training; None with Lora2Callback, which knows it.
    """

    k: int = 1
    bias: str = "none"
    init_weights: bool | Literal["orthogonal"] = True
    init_std: float = 0.02
    target_r: int | None = None
    tinit: int = 0
    tfinal: int = 0
    deltaT: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    orth_reg_weight: float = 0.1
    orthogonality: str = "uv+UV+PQ"
    orth_squared: bool = False
    importance: str = "factored"
    total_step: int | None = None

    method = "LORA2"

    @property
    def prunes(self) -> bool:
        """Whether the budget falls during training."""
        return self.target_r is not None and self.target_r < self.r

    @property
    def regularizes(self) -> bool:
        """Whether the loss has an orthogonality term."""
        return self.orth_reg_weight > 0 and self.orthogonality != "none"

    def _rules(self) -> Rules:
        target, total = self.target_r, self.total_step
        fits = target is None or (is_int(target, 1) and not (is_int(self.r, 1) and target > self.r))
        return super()._rules() | {
            "k": allow.integer(self.k, 1),
            "bias": allow.one_of(self.bias, "none", "all", "lora2_only"),
            "init_weights": allow.one_of(self.init_weights, True, False, "orthogonal"),
            "init_std": allow.positive(self.init_std),
            "target_r": (fits, f"None or an integer from 1 to r={self.r!r}"),
            "tinit": allow.integer(self.tinit, 0),
            "tfinal": allow.integer(self.tfinal, 0),
            "deltaT": allow.integer(self.deltaT, 1),
            "beta1": allow.fraction(self.beta1),
            "beta2": allow.fraction(self.beta2),
            "orth_reg_weight": allow.non_negative(self.orth_reg_weight),
            "orthogonality": allow.one_of(self.orthogonality, *ORTHOGONALITY),
            "orth_squared": allow.one_of(self.orth_squared, True, False),
            "importance": allow.one_of(self.importance, "factored", "full"),
            "total_step": (total is None or is_int(total, 1), "None or an integer >= 1"),
        }

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if not problems and self.total_step is not None:
            problems = [problem for problem in [schedule_problem(self, self.total_step)] if problem]
        return problems


def schedule_problem(config: Lora2Config, total_step: int) -> str | None:
    """Why the pruning schedule does not fit ``total_step`` optimiser steps, or None if it does."""
    if not config.prunes:
        return None
    if config.tinit + config.tfinal >= total_step:
        return (
            f"tinit={config.tinit} + tfinal={config.tfinal} leave no step for pruning in "
            f"total_step={total_step} (allowed: tinit + tfinal < total_step; lower them, or train "
            f"longer)"
        )
    if total_step - config.tfinal < 2:
        return (
            f"tfinal={config.tfinal} freezes the scores before the first of total_step="
            f"{total_step} steps is scored (allowed: tfinal <= total_step - 2)"
        )
    if config.tfinal == 0 and total_step % config.deltaT:
        return (
            f"deltaT={config.deltaT} renews no mask at the last step, total_step={total_step}, so "
            f"the target is never reached (allowed: tfinal >= 1, or a total_step that is a "
            f"multiple of deltaT)"
        )
    return None
