"""Settings of LoRA-XS (Bałazy et al., 2024, arXiv 2405.17604)."""

from __future__ import annotations

from dataclasses import dataclass

from lora2.tuners.base_config import AdapterConfig, Rules, non_negative, one_of


@dataclass
class LoraXsConfig(AdapterConfig):
    """x W0 + s x A R B with s = lora_alpha / r; only R (r, r) is trained.

    A (d_in, r) = U_r Sigma_r and B (r, d_out) = V_r^T come from the truncated singular value
    decomposition of the frozen W0, written (d_in, d_out) so that rows are multiplied, as in the
    paper and in the published code (scale included). Sigma is therefore on the input side.

    Args:
        r: rank, at most min(d_in, d_out) of every target (published: 4 to 25, lora_alpha 16,
            dropout 0, and for RoBERTa the targets query, value, attention.output.dense,
            output.dense). All other arguments of ``AdapterConfig`` as there.
        init_std: standard deviation of R at the start.
        save_basis: True saves A and B with the adapter: it then gives the same update on every
            machine. False saves R alone (r^2 numbers a module), and A and B are computed again from
            the weights of the model it is loaded on, which must be those it was trained on.

    Raises:
        ValueError: one error that lists every impossible value.
    """

    r: int = 16
    init_std: float = 1e-5
    save_basis: bool = True

    method = "LORA_XS"

    def _rules(self) -> Rules:
        return super()._rules() | {
            "init_std": non_negative(self.init_std),
            "save_basis": one_of(self.save_basis, True, False),
        }
