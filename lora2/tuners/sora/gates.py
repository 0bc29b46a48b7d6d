"""The optimizer of SoRA's gates: AdamW, then the proximal step of xi |g|."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from lora2.tuners.loss_term import OTHER_WEIGHTS
from lora2.tuners.sora.config import SoraConfig


def proximal_step(gate: Tensor, xi: float, threshold: str = "soft") -> Tensor:
    """Shrink every gate towards zero; gates (any shape) -> new gates of the same shape.

    "soft" is argmin_z 1/2 (z - g)^2 + xi |z| = sign(g) max(|g| - xi, 0). "published" shrinks
    |g| > xi by xi and then sets |g| < xi to zero, as the published code does.
    """
    size = gate.abs()
    if threshold == "soft":
        size = (size - xi).clamp_min(0.0)
    else:
        size = torch.where(size > xi, size - xi, size)
        size = torch.where(size < xi, torch.zeros_like(size), size)
    return gate.sign() * size


def xi_at(config: SoraConfig, step: int, total_step: int) -> float:
    """The threshold of optimizer step ``step`` (counted from 1) of ``total_step``."""
    if config.xi_max is None:
        return config.xi
    stage = min((step - 1) * config.xi_stages // total_step, config.xi_stages - 1)
    return config.xi + (config.xi_max - config.xi) * stage / (config.xi_stages - 1)


def lr_at(config: SoraConfig, step: int, total_step: int) -> float:
    """The gates' learning rate of optimizer step ``step`` (from 1): linear warm-up and decay."""
    done = step - 1
    warmup = int(config.gate_warmup_ratio * total_step)
    if done < warmup:
        return config.gate_lr * done / warmup
    return config.gate_lr * max(0, total_step - done) / (total_step - warmup)


class GateOptimizer:
    """Steps the gates of one adapter, all of them at once; no value is moved to the host.

    Args:
        gates: module name -> gate (r,), all on one device.
        total_step: number of optimizer steps of the whole training, which both schedules span.
    """

    def __init__(self, gates: dict[str, nn.Parameter], config: SoraConfig, total_step: int) -> None:
        self.gates = gates
        self.config = config
        self.total_step = total_step
        self.driven = 0
        # The gates after the last step, and AdamW's moments: (modules, r) each.
        self.last = self._stacked()
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(self.last), torch.zeros_like(self.last)

    @torch.no_grad()
    def step(self, step: int, with_term: bool = False) -> None:
        """AdamW, the proximal step, and no gradient left: another optimizer skips the gates.

        A step whose gradients are not finite, which fp16's loss scaler skips, changes nothing.

        Args:
            with_term: add the gradient of sparse_lambda mean |g|, which no backward pass brought.

        Raises:
            RuntimeError: no gate has a gradient.
        """
        gates: list[Tensor] = list(self.gates.values())
        if all(gate.grad is None for gate in gates):
            raise RuntimeError(
                f"SoRA: no gate has a gradient at step {step}; call before_optimizer_step(step) "
                f"after loss.backward() and before optimizer.step() and optimizer.zero_grad()"
            )
        gate = self._stacked()
        unused = torch.zeros_like(gates[0])
        grad = torch.stack([unused if one.grad is None else one.grad for one in gates])
        if with_term:
            grad += gate.sign() * (self.config.sparse_lambda / gate.numel())
        self.driven += 1
        lr = lr_at(self.config, step, self.total_step)
        stepped, exp_avg, exp_avg_sq = self._adamw(gate, grad, lr)
        xi = xi_at(self.config, step, self.total_step)
        stepped = proximal_step(stepped, xi, self.config.threshold)
        finite = grad.abs().amax() < torch.inf
        self.last = torch.where(finite, stepped, gate)
        self.exp_avg = torch.where(finite, exp_avg, self.exp_avg)
        self.exp_avg_sq = torch.where(finite, exp_avg_sq, self.exp_avg_sq)
        torch._foreach_copy_(gates, list(self.last.unbind()))
        for one in gates:
            one.grad = None

    def _adamw(self, gate: Tensor, grad: Tensor, lr: float) -> tuple[Tensor, Tensor, Tensor]:
        """The gates and moments after a step of AdamW, operation by operation as in torch.optim."""
        beta1, beta2, eps = 0.9, 0.999, 1e-6
        gate = gate * (1 - lr * self.config.gate_weight_decay)
        exp_avg = self.exp_avg.lerp(grad, 1 - beta1)
        exp_avg_sq = (self.exp_avg_sq * beta2).addcmul_(grad, grad, value=1 - beta2)
        correction = (1 - beta2**self.driven) ** 0.5
        size = exp_avg_sq.sqrt().div_(correction).add_(eps)
        rate = lr / (1 - beta1**self.driven)
        return gate.addcdiv_(exp_avg, size, value=-rate), exp_avg, exp_avg_sq

    def state(self) -> dict[str, Tensor]:
        """AdamW's moments, the number of steps driven, and whose they are: flat, on the CPU."""
        tensors = {"gate": self._stacked(), "exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}
        copies = {key: value.cpu().clone() for key, value in tensors.items()}
        return {"driven": torch.tensor(self.driven), **copies}

    def load_state(self, flat: dict[str, Tensor]) -> None:
        """Put back what ``state`` returned; the gates must be those of that time.

        Raises:
            ValueError: it is the state of other gates.
        """
        own = self.state()
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in flat.items()}:
            raise ValueError(
                "SoRA: the saved gate optimizer is of another number of gates, or of another "
                "version of lora2; resume with the same target_modules and r"
            )
        if not torch.equal(own["gate"], flat["gate"]):
            raise ValueError(f"SoRA: {OTHER_WEIGHTS}")
        self.driven = int(flat["driven"])
        self.exp_avg.copy_(flat["exp_avg"])
        self.exp_avg_sq.copy_(flat["exp_avg_sq"])
        self.last = self._stacked()

    def check_finished(self) -> None:
        """Warn where the gates are another checkpoint's than the last step's, or none was pruned.

        Raises:
            RuntimeError: no step was made, so that this was a LoRA with gates and not SoRA.
        """
        if self.driven == 0:
            raise RuntimeError(
                "SoRA: no proximal step was made in this training; call "
                "before_optimizer_step(step) in every step, or pass Lora2Callback() to the Trainer"
            )
        last, loaded = self.last != 0, self._stacked() != 0
        if not torch.equal(last, loaded):
            warnings.warn(
                f"the weights loaded after training keep {int(loaded.sum())} gates, the last step "
                f"kept {int(last.sum())}: this checkpoint was taken before the ranks were final",
                stacklevel=3,
            )
        elif last.all():
            warnings.warn(
                "SoRA: no gate is zero; a larger xi or sparse_lambda, or more steps, would prune",
                stacklevel=3,
            )

    def _stacked(self) -> Tensor:
        """A copy of all gates, (modules, r)."""
        return torch.stack([gate.detach() for gate in self.gates.values()])
