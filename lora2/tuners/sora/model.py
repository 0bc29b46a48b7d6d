"""SoRA (Ding et al., 2023, arXiv 2311.11696): settings, layer, PEFT model, the gates' optimiser."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lora2.tuners import base_config as allow
from lora2.tuners.base import AdapterLayer, wide
from lora2.tuners.base_config import AdapterConfig, Rules, is_real
from lora2.tuners.loss_term import OTHER_WEIGHTS, LossTerm, TermModel


@dataclass
class SoraConfig(AdapterConfig):
    """W0 + s B diag(g) A with s = lora_alpha / r, where a proximal step drives gates g_i to zero.

    The gates have an AdamW (betas 0.9 and 0.999, eps 1e-6) and a schedule as in the published code:
    the rate rises linearly from 0 to ``gate_lr`` in ``gate_warmup_steps`` and falls linearly to 0.
    A proximal step with threshold xi, not multiplied by the rate, follows each of its steps.
    ``sparse_lambda``, ``xi`` and ``gate_lr`` default to the published STS-B run; for another task
    set ``gate_lr`` to its learning rate.

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
        gate_warmup_steps: optimizer steps in which it rises; below 1 a share of all steps, rounded
            up, as ``warmup_steps`` of transformers' TrainingArguments.
        gate_weight_decay: decoupled weight decay of the gates (0 in the published code).
        init_weights: False makes B random too, so that a new adapter is not a no-op.
    """

    sparse_lambda: float = 10.0
    xi: float = 3e-4
    xi_max: float | None = None
    xi_stages: int = 1
    threshold: str = "soft"
    gate_lr: float = 8e-4
    gate_warmup_steps: float = 0.06
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
            "gate_warmup_steps": allow.non_negative(self.gate_warmup_steps),
            "gate_weight_decay": allow.non_negative(self.gate_weight_decay),
            "init_weights": allow.one_of(self.init_weights, True, False),
        }


class SoraLinear(AdapterLayer):
    """base(x) + s ((dropout(x) A^T) * g) B^T, with A (r, d_in), g (r,) and B (d_out, r)."""

    adapter_layer_names = ("sora_A", "sora_B", "sora_gate")
    other_param_names = ("r", "scaling", "sora_dropout")

    sora_A: nn.ParameterDict
    sora_B: nn.ParameterDict
    sora_gate: nn.ParameterDict

    def _create(self, adapter_name: str, config: SoraConfig) -> None:
        """Start with A kaiming-uniform, B zero, gates from N(0, 1)."""
        self.sora_A[adapter_name] = nn.Parameter(torch.empty(config.r, self.in_features))
        self.sora_B[adapter_name] = nn.Parameter(torch.zeros(self.out_features, config.r))
        self.sora_gate[adapter_name] = nn.Parameter(torch.randn(config.r))
        nn.init.kaiming_uniform_(self.sora_A[adapter_name], a=math.sqrt(5))
        if not config.init_weights:
            nn.init.kaiming_uniform_(self.sora_B[adapter_name], a=math.sqrt(5))

    def thin_factors(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """A^T (d_in, kept) and s diag(g) B^T (kept, d_out) of the gates that are not zero."""
        gate = self.sora_gate[adapter_name]
        kept = gate.nonzero().squeeze(1)  # (r,) -> (kept,)
        scaled = wide(gate[kept]) * self.scaling[adapter_name]
        first, second = self.sora_A[adapter_name][kept].T, self.sora_B[adapter_name][:, kept]
        return wide(first), (wide(second) * scaled).T

    def kept(self, adapter_name: str) -> Tensor:
        """Which gates are not zero, (r,)."""
        return self.sora_gate[adapter_name] != 0

    def kept_parameters(self, adapter_name: str) -> int:
        """d_in + d_out + 1 for each gate that is not zero."""
        return int(self.kept(adapter_name).sum()) * (self.in_features + self.out_features + 1)

    def pair(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        gate = self.sora_gate[adapter_name] * self.scaling[adapter_name]
        return self.sora_A[adapter_name], gate.unsqueeze(1) * self.sora_B[adapter_name].T

    def _narrow(self, x: Tensor, adapter_name: str) -> tuple[Tensor, Tensor]:
        A, B = self.sora_A[adapter_name], self.sora_B[adapter_name]
        hidden = linear(self._dropped(x, adapter_name, A.dtype), A)  # (..., d_in) -> (..., r)
        return hidden * (self.sora_gate[adapter_name] * self.scaling[adapter_name]), B.T


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
    warmup = config.gate_warmup_steps
    warmup = math.ceil(warmup * total_step) if warmup < 1 else int(warmup)
    if done < warmup:
        return config.gate_lr * done / warmup
    return config.gate_lr * max(0, total_step - done) / max(1, total_step - warmup)


class GateOptimizer:
    """Steps the gates of one adapter ((r,) each) at once; no value is moved to the host."""

    def __init__(self, gates: dict[str, nn.Parameter], config: SoraConfig, total_step: int) -> None:
        self.gates, self.config, self.total_step = gates, config, total_step
        self.driven = 0
        # The gates after the last step, and AdamW's moments: (modules, r) each.
        self.last = self._stacked()
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(self.last), torch.zeros_like(self.last)
        self.count = self.last.new_zeros(())  # of ``driven`` steps, those with finite gradients

    @torch.no_grad()
    def step(self, step: int, with_term: bool | Tensor = False) -> None:
        """AdamW, the proximal step, and no gradient left: another optimizer skips the gates.

        A step whose gradients are not finite, which fp16's loss scaler skips, changes nothing.
        ``with_term`` adds the gradient of sparse_lambda mean |g|, which no backward pass brought.
        """
        if not 1 <= step <= self.total_step:
            raise ValueError(
                f"SoRA: step {step} of {self.total_step}: steps count optimiser steps from 1, not "
                f"micro-batches; prepare_training takes the whole training's steps"
            )
        gates: list[Tensor] = list(self.gates.values())
        if all(gate.grad is None for gate in gates):
            raise RuntimeError(
                f"SoRA: no gate has a gradient at step {step}; call before_optimizer_step(step) "
                f"after loss.backward() and before optimizer.step() and optimizer.zero_grad(); "
                f"DeepSpeed keeps gradients to itself: train under DDP"
            )
        gate = self._stacked()
        grad = torch.stack([torch.zeros_like(g) if g.grad is None else g.grad for g in gates])
        if with_term is not False:
            grad += with_term * gate.sign() * (self.config.sparse_lambda / gate.numel())
        self.driven += 1
        finite = grad.abs().amax() < torch.inf
        self.count += finite
        schedule = self.config, step, self.total_step
        stepped, exp_avg, exp_avg_sq = self._adamw(gate, grad, lr_at(*schedule))
        stepped = proximal_step(stepped, xi_at(*schedule), self.config.threshold)
        self.last = torch.where(finite, stepped, gate)
        self.exp_avg = torch.where(finite, exp_avg, self.exp_avg)
        self.exp_avg_sq = torch.where(finite, exp_avg_sq, self.exp_avg_sq)
        torch._foreach_copy_(gates, list(self.last.unbind()))
        for updated in gates:
            updated.grad = None

    def _adamw(self, gate: Tensor, grad: Tensor, lr: float) -> tuple[Tensor, Tensor, Tensor]:
        """The gates and moments after a step of AdamW; the bias 1 - beta^count has no sync."""
        beta1, beta2, eps = 0.9, 0.999, 1e-6
        bias1, bias2 = (-torch.expm1(self.count * math.log(beta)) for beta in (beta1, beta2))
        gate = gate * (1 - lr * self.config.gate_weight_decay)
        exp_avg = self.exp_avg.lerp(grad, 1 - beta1)
        exp_avg_sq = (self.exp_avg_sq * beta2).addcmul_(grad, grad, value=1 - beta2)
        size = exp_avg_sq.sqrt().div_(bias2.sqrt()).add_(eps)
        return gate - lr / bias1 * exp_avg / size, exp_avg, exp_avg_sq

    def state(self) -> dict[str, Tensor]:
        """AdamW's moments and number of steps, and the gates: flat, on the CPU."""
        tensors = {"count": self.count, "exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}
        return {k: v.cpu().clone() for k, v in {"gate": self._stacked(), **tensors}.items()}

    def load_state(self, flat: dict[str, Tensor]) -> None:
        """Put back what ``state`` returned; a ValueError if it is of other gates."""
        own = self.state()
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in flat.items()}:
            raise ValueError(
                "SoRA: the saved gate optimizer is of another number of gates, or of another "
                "version of lora2; resume with the same target_modules and r"
            )
        if not torch.equal(own["gate"], flat["gate"]):
            raise ValueError(f"SoRA: {OTHER_WEIGHTS}")
        self.driven = int(flat["count"])
        self.count.copy_(flat["count"])
        self.exp_avg.copy_(flat["exp_avg"])
        self.exp_avg_sq.copy_(flat["exp_avg_sq"])
        self.last = self._stacked()

    def check_finished(self) -> None:
        """Warn if the gates are not those of the last step, or none was pruned."""
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
        """Return a copy of all gates, (modules, r)."""
        return torch.stack([gate.detach() for gate in self.gates.values()])


class SoraModel(TermModel):
    """What ``get_peft_model(model, SoraConfig(...)).base_model`` is.

    In training mode ``sparse_lambda`` mean |g| is added to the loss that the model returns; with
    another loss the gates' step adds its gradient. A training loop calls
    ``prepare_training(total_step)`` once, and ``before_optimizer_step(step)`` between backward and
    optimizer.step(); ``Lora2Callback`` does so in transformers' Trainer.
    """

    prefix = "sora_"
    tuner_layer_cls = SoraLinear
    gate_optimizer: GateOptimizer | None = None

    def _gates(self, adapter: str) -> dict[str, nn.Parameter]:
        return {n: layer.sora_gate[adapter] for n, layer in self.adapted_layers(adapter).items()}

    def _watch(self, adapter: str, saving: bool) -> None:
        first, from_zero = self._first(adapter), self.peft_config[adapter].init_weights
        gate, driven, total = first.sora_gate[adapter], 0, None
        if (own := self.gate_optimizer) and any(gate is one for one in own.gates.values()):
            driven, total = own.driven, own.total_step
        # After the last step of a training too: another one must be prepared.
        if driven in (0, None if saving else total):
            B = first.sora_B[adapter]
            if saving and from_zero and not B.is_meta and B.any() and first.kept(adapter).all():
                self._versions += [-1]  # trained, though compiled passes are not watched
            message = "SoRA: the gates are not stepped, so none will be pruned: train with "
            message += "callbacks=[Lora2Callback()], or call prepare_training(total_step), and "
            message += "before_optimizer_step(step) before each optimizer.step()"
            self._warn_undriven(gate, saving, message)

    def sparsity_loss(self) -> Tensor:
        """sparse_lambda mean |g| over all gates of the active adapter, a scalar."""
        name, config = self._trained()
        gates = torch.cat(list(self._gates(name).values()))
        return self._term.watch(config.sparse_lambda * gates.abs().mean())

    _loss_term = sparsity_loss

    def prepare_training(self, total_step: int) -> None:
        """Make the gates' optimizer for a training of ``total_step`` optimizer steps.

        Raises:
            ValueError: ``total_step`` is below 1 or below the number of xi stages, or the gates are
                in a precision in which xi is lost.
        """
        adapter, config = self._trained()
        gates = self._gates(adapter)
        if total_step < max(1, config.xi_stages):
            raise ValueError(
                f"SoRA: {total_step} optimizer steps are fewer than the {config.xi_stages} stages "
                f"of xi; train longer or lower xi_stages"
            )
        for name, gate in gates.items():
            if gate.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"SoRA: the gate of {name} is {gate.dtype}, in which a shrinkage of xi = "
                    f"{config.xi} is lost; leave autocast_adapter_dtype=True"
                )
        self.gate_optimizer = GateOptimizer(gates, config, total_step)
        self._term = LossTerm(self.gate_optimizer.last.device)

    def _prepared(self) -> GateOptimizer:
        if self.gate_optimizer is None:
            raise RuntimeError(
                "SoRA: call prepare_training(total_step) before training, or pass Lora2Callback() "
                "to the Trainer"
            )
        return self.gate_optimizer

    def before_optimizer_step(self, step: int) -> None:
        """Step the gates at optimizer step ``step`` = 1, 2, ...; afterwards their .grad is None.

        The gradient of the L1 term is added if no backward pass reached it.
        """
        self._prepared().step(step, with_term=self._term.missing())

    def training_state(self) -> dict[str, Tensor]:
        """The gate optimizer's state, flat, for safetensors."""
        return self._prepared().state()

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Continue where ``training_state`` was taken; after ``prepare_training``."""
        self._prepared().load_state(state)

    def finish_training(self) -> None:
        """Raise a RuntimeError if no proximal step happened; warn of what they left."""
        self._prepared().check_finished()
