"""The optimizer of SoRA's gates: AdamW, then the proximal step of xi |g|."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
    """Steps the gates of one adapter.

    Args:
        gates: module name -> gate (r,), all on one device.
        total_step: number of optimizer steps of the whole training, which both schedules span.
    """

    def __init__(self, gates: dict[str, nn.Parameter], config: SoraConfig, total_step: int) -> None:
        self.gates = gates
        self.config = config
        self.total_step = total_step
        self.driven = 0
        self.adamw = torch.optim.AdamW(
            gates.values(),
            lr=config.gate_lr,
            betas=(0.9, 0.999),
            eps=1e-6,
            weight_decay=config.gate_weight_decay,
            foreach=True,
        )

    @torch.no_grad()
    def step(self, step: int) -> None:
        """AdamW, the proximal step, and no gradient left: another optimizer skips the gates.

        Raises:
            RuntimeError: no gate has a gradient.
        """
        gates = list(self.gates.values())
        if all(gate.grad is None for gate in gates):
            raise RuntimeError(
                f"SoRA: no gate has a gradient at step {step}; call before_optimizer_step(step) "
                f"after loss.backward() and before optimizer.step() and optimizer.zero_grad()"
            )
        self.adamw.param_groups[0]["lr"] = lr_at(self.config, step, self.total_step)
        self.adamw.step()
        xi = xi_at(self.config, step, self.total_step)
        shrunk = proximal_step(torch.stack(gates), xi, self.config.threshold)  # (modules, r)
        torch._foreach_copy_(gates, list(shrunk.unbind()))
        for gate in gates:
            gate.grad = None
        self.driven += 1

    def state(self) -> dict[str, Tensor]:
        """AdamW's moments and step counts, and the number of steps driven: flat, on the CPU."""
        flat = {"driven": torch.tensor(self.driven)}
        for name, gate in self.gates.items():
            for key, value in self.adamw.state[gate].items():
                flat[f"{name}.{key}"] = value.detach().cpu().clone()
        return flat

    def load_state(self, flat: dict[str, Tensor]) -> None:
        """Put back what ``state`` returned.

        Raises:
            ValueError: it is the state of other gates.
        """
        modules = {key.rpartition(".")[0] for key in flat} - {""}
        driven = int(flat.get("driven", -1))
        # fewer modules are right where one never had a gradient, none only before the first step
        if driven < 0 or not modules <= set(self.gates) or bool(modules) != (driven > 0):
            raise ValueError(
                f"SoRA: the saved gate optimizer has {len(modules)} modules and this model "
                f"{len(self.gates)}, or they are others; resume with the same target_modules"
            )
        self.driven = driven
        self.adamw.state.clear()
        for name, gate in self.gates.items():
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}.{key}" in flat]
            for key in keys:
                # AdamW wants its step count on the CPU, so that reading it never waits for a GPU
                device = "cpu" if key == "step" else gate.device
                value = flat[f"{name}.{key}"].to(device, copy=True)
                self.adamw.state[gate][key] = value
