"""Settings of SoRA (Ding et al., 2023, arXiv 2311.11696)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig

from lora2.tuners.register import extend_peft_type

THRESHOLDS = ("soft", "published")


def _real(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


@dataclass
class SoraConfig(PeftConfig):
    """W0 + s B diag(g) A with s = lora_alpha / r, where a proximal step drives gates g_i to zero.

    The gates have an AdamW of their own (betas 0.9 and 0.999, eps 1e-6). Its rate rises linearly
    from 0 to ``gate_lr`` over the first ``gate_warmup_ratio`` of the steps and falls linearly to 0:
    the published code gives the gates their own schedule of this shape, with the main rate and
    warm-up. Each of its steps is followed by the proximal step with threshold xi, which the
    published code does not multiply by the rate.

    The defaults of ``sparse_lambda``, ``xi`` and ``gate_lr`` are those of the published STS-B run;
    for another task set ``gate_lr`` to its learning rate.

    Args:
        r: rank of A (r, d_in) and B (d_out, r), and the number of gates of a module.
        lora_alpha: numerator of the scale s; s keeps the initial r as gates go to zero.
        lora_dropout: dropout on the input of A, in [0, 1).
        target_modules: module names or a regular expression, as in PEFT's LoraConfig; None takes
            PEFT's LoRA targets of a known architecture.
        sparse_lambda: weight of mean |g| over all gates, added to the loss in training.
        xi: threshold of the proximal step; that of the first stage when ``xi_stages`` > 1.
        xi_max: threshold of the last stage (required when ``xi_stages`` > 1).
        xi_stages: number of equally long stages, between which xi rises linearly from ``xi`` to
            ``xi_max`` (Algorithm 1 of the paper; e.g. 0 to 7e-4 in 7 stages).
        threshold: "soft" is the soft-thresholding of the paper, g <- sign(g) max(|g| - xi, 0).
            "published" is the published code: |g| > xi shrinks by xi, then |g| < xi becomes 0, so
            everything below 2 xi dies.
        gate_lr: peak learning rate of the gates.
        gate_warmup_ratio: share of the steps in which it rises.
        gate_weight_decay: decoupled weight decay of the gates (0 in the published code).
        init_weights: False makes B random too, so that a new adapter is not a no-op.

    Raises:
        ValueError: settings that cannot be; the message names all of them.
    """

    r: int = field(default=8, metadata={"help": "rank; also the number of gates of a module"})
    lora_alpha: float = field(default=16, metadata={"help": "the scale is lora_alpha / r"})
    lora_dropout: float = field(default=0.0, metadata={"help": "dropout on the input of A"})
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "as in LoRA"})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "as in LoRA"})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "trained in full"})
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "as in LoRA"}
    )
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "as in LoRA"})
    sparse_lambda: float = field(default=10.0, metadata={"help": "weight of mean |g| in the loss"})
    xi: float = field(default=3e-4, metadata={"help": "threshold of the proximal step"})
    xi_max: float | None = field(default=None, metadata={"help": "threshold of the last stage"})
    xi_stages: int = field(default=1, metadata={"help": "equally long stages of xi"})
    threshold: str = field(default="soft", metadata={"help": "soft or published"})
    gate_lr: float = field(default=8e-4, metadata={"help": "peak learning rate of the gates"})
    gate_warmup_ratio: float = field(default=0.06, metadata={"help": "share of steps it rises"})
    gate_weight_decay: float = field(default=0.0, metadata={"help": "weight decay of the gates"})
    init_weights: bool = field(default=True, metadata={"help": "False makes B random too"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = extend_peft_type("SORA")
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, set(getattr(self, name)))
        problems = self._problems()
        if problems:
            raise ValueError("SoraConfig: " + "; ".join(problems))

    def _problems(self) -> list[str]:
        """One sentence for each setting that cannot be."""
        checks = {
            "r": (type(self.r) is int and self.r >= 1, "an integer >= 1"),
            "xi_stages": (type(self.xi_stages) is int and self.xi_stages >= 1, "an integer >= 1"),
            "xi_max": (self.xi_max is None or _real(self.xi_max), "a number or None"),
            "threshold": (self.threshold in THRESHOLDS, f"one of {', '.join(THRESHOLDS)}"),
        }
        for name in ("sparse_lambda", "xi", "gate_weight_decay"):
            value = getattr(self, name)
            checks[name] = (_real(value) and value >= 0, ">= 0")
        for name in ("lora_alpha", "gate_lr"):
            value = getattr(self, name)
            checks[name] = (_real(value) and value > 0, "> 0")
        for name in ("lora_dropout", "gate_warmup_ratio"):
            value = getattr(self, name)
            checks[name] = (_real(value) and 0 <= value < 1, "in [0, 1)")
        problems = [
            f"{name} must be {what}, not {getattr(self, name)!r}"
            for name, (holds, what) in checks.items()
            if not holds
        ]
        if (self.xi_max is None) != (self.xi_stages == 1):
            problems.append(
                f"xi_max and xi_stages >= 2 belong together, got xi_max={self.xi_max} and "
                f"xi_stages={self.xi_stages}"
            )
        if _real(self.xi_max) and _real(self.xi) and self.xi_max < self.xi:
            problems.append(f"xi_max must be >= xi, got {self.xi_max} < {self.xi}")
        if self.layers_pattern is not None and self.layers_to_transform is None:
            problems.append("layers_pattern needs layers_to_transform")
        return problems
