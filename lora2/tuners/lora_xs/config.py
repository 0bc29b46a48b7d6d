"""Settings of LoRA-XS (Bałazy et al., 2024, arXiv 2405.17604)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig

from lora2.tuners.register import extend_peft_type


def _real(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


@dataclass
class LoraXsConfig(PeftConfig):
    """x W0 + s x A R B with s = lora_alpha / r; only R (r, r) is trained.

    A (d_in, r) = U_r Sigma_r and B (r, d_out) = V_r^T come from the truncated singular value
    decomposition of the frozen W0, written (d_in, d_out) so that rows are multiplied, as in the
    paper and in the published code (scale included). Sigma is therefore on the input side.

    Args:
        r: rank, at most min(d_in, d_out) of every target (published: 4 to 25).
        lora_alpha: numerator of the scale s (published: 16).
        lora_dropout: dropout on the input of A, in [0, 1) (published: 0).
        target_modules: module names or a regular expression, as in PEFT's LoraConfig; None takes
            PEFT's LoRA targets of a known architecture. Published for RoBERTa: query, value,
            attention.output.dense, output.dense.
        init_std: standard deviation of R at the start.
        save_basis: True saves A and B with the adapter: it then gives the same update on every
            machine. False saves R alone (r^2 numbers a module), and A and B are computed again from
            the weights of the model it is loaded on, which must be those it was trained on.

    Raises:
        ValueError: settings that cannot be; the message names all of them.
    """

    r: int = field(default=16, metadata={"help": "rank; R has r^2 parameters"})
    lora_alpha: float = field(default=16, metadata={"help": "the scale is lora_alpha / r"})
    lora_dropout: float = field(default=0.0, metadata={"help": "dropout on the input of A"})
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "as in LoRA"})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "as in LoRA"})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "trained in full"})
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "as in LoRA"}
    )
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "as in LoRA"})
    init_std: float = field(default=1e-5, metadata={"help": "standard deviation of R at the start"})
    save_basis: bool = field(default=True, metadata={"help": "save A and B with the adapter"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = extend_peft_type("LORA_XS")
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, set(getattr(self, name)))
        checks = {
            "r": (type(self.r) is int and self.r >= 1, "an integer >= 1"),
            "lora_alpha": (_real(self.lora_alpha) and self.lora_alpha > 0, "> 0"),
            "lora_dropout": (_real(self.lora_dropout) and 0 <= self.lora_dropout < 1, "in [0, 1)"),
            "init_std": (_real(self.init_std) and self.init_std >= 0, ">= 0"),
            "save_basis": (isinstance(self.save_basis, bool), "True or False"),
        }
        problems = [
            f"{name} must be {what}, not {getattr(self, name)!r}"
            for name, (holds, what) in checks.items()
            if not holds
        ]
        if self.layers_pattern is not None and self.layers_to_transform is None:
            problems.append("layers_pattern needs layers_to_transform")
        if problems:
            raise ValueError("LoraXsConfig: " + "; ".join(problems))
