"""The settings of LoRA2, with every impossible value refused before a model is touched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from peft import PeftConfig

from lora2.tuners.register import extend_peft_type

ORTHOGONALITY = ("uv", "UV", "uv+UV", "PQ", "uv+UV+PQ", "none")
IMPORTANCE = ("factored", "full")
BIAS = ("none", "all", "lora2_only")


@dataclass
class Lora2Config(PeftConfig):
    """Settings of LoRA2 (arXiv 2408.06854, Eq. 4-9); defaults follow the paper and its scripts.

    Args:
        r: rank at the start, the number of singular values of one adapted matrix.
        k: inner rank of u, v, U and V; the update of one matrix has rank <= min(k, r).
        lora_alpha: the update is multiplied by lora_alpha / r.
        lora_dropout: dropout probability on the adapter's input.
        target_modules: names (exact or suffix) or a regular expression, "all-linear", or None for
            the modules that PEFT's LoRA adapts in a known model.
        exclude_modules: names or a regular expression of modules to leave alone.
        layers_to_transform: indices of the layers to adapt; needs a list of target_modules.
        layers_pattern: name of the list of layers, when it is not a common one.
        modules_to_save: modules trained in full and saved beside the adapter (the classifier).
        bias: the biases that are trained: "none", "all" or "lora2_only".
        fan_in_fan_out: the weights are stored as (d_in, d_out), as Conv1D does.
        init_weights: the start, at which lambda is zero and the model unchanged. True: u, v, U, V
            at N(0, init_std^2), as published. "orthogonal": u^T u = V V^T = v v^T = U^T U = I_k,
            where the penalties of "uv" and "UV" are zero; use it with create_lora2_optimizer,
            which gives lambda a rate of its own. False: a random non-zero update (for tests).
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

    Raises:
        ValueError: one error that lists every impossible value.
    """

    r: int = 8
    k: int = 1
    lora_alpha: float = 16
    lora_dropout: float = 0.0
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    bias: str = "none"
    fan_in_fan_out: bool = False
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

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = extend_peft_type("LORA2")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        problems = _impossible_values(self) + _impossible_targets(self)
        if problems:
            raise ValueError("Lora2Config: " + "; ".join(problems))

    @property
    def prunes(self) -> bool:
        """Whether the budget falls during training."""
        return self.target_r is not None and self.target_r < self.r

    @property
    def regularizes(self) -> bool:
        """Whether the loss has an orthogonality term."""
        return self.orth_reg_weight > 0 and self.orthogonality != "none"


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


def _is_int(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _impossible_values(c: Lora2Config) -> list[str]:
    """Problems as "key=value (allowed: ...)"."""
    r_max = c.r if _is_int(c.r, 1) else math.inf
    rules = [
        ("r", _is_int(c.r, 1), "an integer >= 1"),
        ("k", _is_int(c.k, 1), "an integer >= 1"),
        ("lora_alpha", _is_real(c.lora_alpha) and c.lora_alpha > 0, "a number > 0"),
        ("lora_dropout", _is_real(c.lora_dropout) and 0 <= c.lora_dropout < 1, "0 <= p < 1"),
        ("bias", c.bias in BIAS, " | ".join(BIAS)),
        (
            "init_weights",
            isinstance(c.init_weights, bool) or c.init_weights == "orthogonal",
            "True | False | orthogonal",
        ),
        ("init_std", _is_real(c.init_std) and c.init_std > 0, "a number > 0"),
        (
            "target_r",
            c.target_r is None or (_is_int(c.target_r, 1) and c.target_r <= r_max),
            f"None or an integer from 1 to r={c.r!r}",
        ),
        ("tinit", _is_int(c.tinit, 0), "an integer >= 0"),
        ("tfinal", _is_int(c.tfinal, 0), "an integer >= 0"),
        ("deltaT", _is_int(c.deltaT, 1), "an integer >= 1"),
        ("beta1", _is_real(c.beta1) and 0 <= c.beta1 < 1, "0 <= beta1 < 1"),
        ("beta2", _is_real(c.beta2) and 0 <= c.beta2 < 1, "0 <= beta2 < 1"),
        (
            "orth_reg_weight",
            _is_real(c.orth_reg_weight) and c.orth_reg_weight >= 0,
            "a number >= 0",
        ),
        ("orthogonality", c.orthogonality in ORTHOGONALITY, " | ".join(ORTHOGONALITY)),
        ("orth_squared", isinstance(c.orth_squared, bool), "True | False"),
        ("importance", c.importance in IMPORTANCE, " | ".join(IMPORTANCE)),
        ("total_step", c.total_step is None or _is_int(c.total_step, 1), "None or an integer >= 1"),
    ]
    problems = [f"{key}={getattr(c, key)!r} (allowed: {ok})" for key, fits, ok in rules if not fits]
    if not problems and c.total_step is not None and (problem := schedule_problem(c, c.total_step)):
        problems.append(problem)
    return problems


def _impossible_targets(config: Lora2Config) -> list[str]:
    """Combinations that PEFT's module matching cannot honour."""
    problems = []
    for key in ("layers_to_transform", "layers_pattern"):
        if isinstance(config.target_modules, str) and getattr(config, key) is not None:
            problems.append(
                f"{key}={getattr(config, key)!r} (allowed: None while target_modules is a string)"
            )
    if config.layers_pattern and config.layers_to_transform is None:
        problems.append(
            f"layers_pattern={config.layers_pattern!r} (allowed: only beside layers_to_transform)"
        )
    return problems
