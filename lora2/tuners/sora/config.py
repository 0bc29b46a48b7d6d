"""Settings of SoRA (Ding et al., 2023, arXiv 2311.11696)."""

from __future__ import annotations

from dataclasses import dataclass

from lora2.tuners import base_config as allow
from lora2.tuners.base_config import AdapterConfig, Rules, is_real


@dataclass
class SoraConfig(AdapterConfig):
    """W0 + s B diag(g) A with s = lora_alpha / r, where a proximal step drives gates g_i to zero.

    The gates have an AdamW (betas 0.9 and 0.999, eps 1e-6) and a schedule as in the published code:
    the rate rises linearly from 0 to ``gate_lr`` over the first ``gate_warmup_ratio`` of the steps
    and falls linearly to 0. A proximal step with threshold xi, not multiplied by the rate, follows
    each of its steps. ``sparse_lambda``, ``xi`` and ``gate_lr`` default to the published STS-B run;
    for another task set ``gate_lr`` to its learning rate.

    Args:
        r: number of gates of a module: the rank of A (r, d_in) and B (d_out, r). The scale keeps it
            as gates go to zero. All other arguments of ``AdapterConfig`` as there.
        sparse_lambda: weight of mean |g| over all gates, added to the loss in training.
        xi: threshold of the proximal step; that of the first stage when ``xi_stages`` > 1.
        xi_max: threshold of the last stage (required when ``xi_stages`` > 1).
        xi_stages: number of equally long stages, in which xi rises linearly from ``xi`` to
            ``xi_max`` (Algorithm 1 of the paper; e.g. 0 to 7e-4 in 7 stages).
        threshold: "soft", the paper's g <- sign(g) max(|g| - xi, 0), or "published", as the code:
            |g| > xi shrinks by xi, then |g| < xi becomes 0, so everything below 2 xi dies.
        gate_lr: peak learning rate of the gates.
        gate_warmup_ratio: share of the steps in which it rises.
        gate_weight_decay: decoupled weight decay of the gates (0 in the published code).
        init_weights: False makes B random too, so that a new adapter is not a no-op.
    """

    sparse_lambda: float = 10.0
    xi: float = 3e-4
    xi_max: float | None = None
    xi_stages: int = 1
    threshold: str = "soft"
    gate_lr: float = 8e-4
    gate_warmup_ratio: float = 0.06
    gate_weight_decay: float = 0.0
    init_weights: bool = True

    method = "SORA"

    def _rules(self) -> Rules:
        xi_max = self.xi_max
        last = self.xi_stages == 1, "a number while xi_stages > 1"
        if xi_max is not None:
            fits = is_real(xi_max) and is_real(self.xi) and xi_max >= self.xi
            text = f"None, or a number >= xi={self.xi!r} beside xi_stages >= 2"
            last = fits and self.xi_stages != 1, text
        return super()._rules() | {
            "sparse_lambda": allow.non_negative(self.sparse_lambda),
            "xi": allow.non_negative(self.xi),
            "xi_max": last,
            "xi_stages": allow.integer(self.xi_stages, 1),
            "threshold": allow.one_of(self.threshold, "soft", "published"),
            "gate_lr": allow.positive(self.gate_lr),
            "gate_warmup_ratio": allow.fraction(self.gate_warmup_ratio),
            "gate_weight_decay": allow.non_negative(self.gate_weight_decay),
        }
