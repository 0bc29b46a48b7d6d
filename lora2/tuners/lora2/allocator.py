"""Which singular values survive: their importance (Eq. 8, 9), and the masks (Algorithm 1)."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from lora2.tuners.lora2.config import Lora2Config, schedule_problem
from lora2.tuners.lora2.stacks import Factors, by_shape, whole


class Allocator:
    """Importance averages and masks of one adapter, one flat state for all n adapted matrices.

    A step is a few batched operations, none of which moves a value to the host. After optimiser
    step t = 1, 2, ..., T = ``total_step``:

    * t < T - tfinal: the averages take in the sensitivity |w dL/dw| of that step.
    * tinit < t <= T - tfinal: the mask is renewed with budget(t) where t is a multiple of deltaT.
      In between, pruned values may grow and come back at the next renewal.
    * t > T - tfinal: the mask of the frozen averages, at the target, is applied after every step.

    The schedule is the published one; PEFT's AdaLoRA also renews the mask at T - tfinal. Ties are
    broken by place (``top_mask``).
    """

    def __init__(self, config: Lora2Config, factors: Factors, total_step: int) -> None:
        if problem := schedule_problem(config, total_step):
            raise ValueError(f"Lora2Config: {problem}")
        self.config, self.total_step, self.last_step = config, total_step, 0
        self.n, lam = len(factors.lam), factors.lam[0]
        self.target_total = self.n * (config.target_r or config.r)  # kept after the training
        both = factors.u + factors.V
        self._outer = by_shape(both) if config.importance == "full" else []
        self._outer_sizes = [sum(both[at].numel() for at in group) for group in self._outer]
        size = sum(weight.numel() for weight in self._scored(factors))
        dtype = torch.promote_types(lam.dtype, torch.float32)
        flat = torch.empty(0, dtype=dtype, device=lam.device)  # lam may be sharded
        # Sensitivity (|w dL/dw| smoothed) and uncertainty (its smoothed deviation), (2, size):
        # lambda (n, r), v (n, k, r), U (n, r, k), then for "full" u and V, group by group of equal
        # shape; all flattened one after another.
        self.averages = flat.new_zeros(2, size)
        self._moved = torch.empty_like(self.averages)
        self.mask = flat.new_ones(self.n, config.r, dtype=torch.bool)
        self._none_kept = flat.new_zeros(self.mask.numel(), dtype=torch.bool)
        self._zero, self._mean = flat.new_zeros(()), flat.new_full((config.k,), 1 / config.k)
        self._places = [
            torch.tensor([at % self.n for at in group], device=lam.device) for group in self._outer
        ]

    @torch.no_grad()
    def step(self, step: int, factors: Factors, masks: list[Tensor]) -> None:
        """Take in optimiser step ``step``; zero pruned lambdas and fill ``masks`` in place."""
        self._check_step(step)
        frozen_from = self.total_step - self.config.tfinal
        weights = self._scored(factors) if step < frozen_from else factors.lam
        flat = _flat(weights, self.averages)
        if step < frozen_from:
            self._observe(flat, weights)
        self.last_step = step
        if step <= self.config.tinit or (step <= frozen_from and step % self.config.deltaT):
            return
        if step <= frozen_from + 1:  # later the averages, and so the mask, stay as they are
            total = budget(
                step, init_total=self.mask.numel(), target_total=self.target_total,
                total_step=self.total_step, tinit=self.config.tinit, tfinal=self.config.tfinal,
            )  # fmt: skip
            self.mask = top_mask(self.scores(), total, self._none_kept)
            torch._foreach_copy_(masks, list(self.mask.unbind()))
        lam = flat[: self.mask.numel()].view_as(self.mask)  # the flat state begins with lambda
        kept, lambdas = list(torch.where(self.mask, lam, self._zero).unbind()), list(factors.lam)
        for at, lam in enumerate(factors.lam):
            if isinstance(lam, DTensor):  # each process writes its part
                part = distribute_tensor(kept[at].to(lam.dtype), lam.device_mesh, lam.placements)
                lambdas[at], kept[at] = lam.to_local(), part.to_local()
        torch._foreach_copy_(lambdas, kept)

    def scores(self) -> Tensor:
        """Importance of every singular value (n, r): S(lambda_i) + mean_j S(v_ji) + mean_j S(U_ij).

        S is sensitivity times uncertainty, element by element (Eq. 9). With importance="full" the
        means of S over all of u and of V are added, the same for every i of one matrix (Eq. 8).
        """
        n, r, k = self.n, self.config.r, self.config.k
        score = self.averages[0] * self.averages[1]
        inner = [n * r, n * k * r, n * r * k]
        lam, v, U, rest = score.split([*inner, score.numel() - sum(inner)])
        # The product with self._mean is a mean and a sum in one operation.
        total: Tensor = torch.addmv(lam, U.view(n * r, k), self._mean).view(n, r)
        total = total + v.view(n, k, r).mean(1)
        for part, place in zip(rest.split(self._outer_sizes), self._places, strict=True):
            matrix_mean = part.view(len(place), -1).mean(1, keepdim=True)  # (g, d * k) -> (g, 1)
            total.index_add_(0, place, matrix_mean.expand(-1, r))
        return total

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of what a resumed run needs, flat: safetensors can hold it."""
        return {
            "step": torch.tensor(self.last_step),
            "total_step": torch.tensor(self.total_step),
            "sensitivity": self.averages[0].clone(),
            "uncertainty": self.averages[1].clone(),
            "mask": self.mask.clone(),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue after the step at which ``state`` was taken; a ValueError if it does not fit."""
        if problems := _differences(self.state_dict(), state):
            raise ValueError(
                "this allocator state belongs to another run: " + "; ".join(problems) + ". Resume "
                "with the same target_modules, r, k, importance and number of steps, or start again"
            )
        self.last_step = int(state["step"])
        self.averages[0] = state["sensitivity"]
        self.averages[1] = state["uncertainty"]
        self.mask = state["mask"].to(self.mask.device, copy=True)

    def check_finished(self, factors: Factors, masks: list[Tensor]) -> None:
        """Raise a RuntimeError unless the training pruned to its target.

        Weights of an earlier checkpoint, loaded after the last step, may have other masks: warn.
        """
        kept = int(self.mask.sum())
        if self.last_step != self.total_step or kept != self.target_total:
            raise RuntimeError(
                f"training ended after step {self.last_step} of total_step={self.total_step} with "
                f"{kept} singular values where the target is {self.target_total}: call "
                f"update_and_allocate after every optimiser step"
            )
        if not self.averages[0].any():
            raise RuntimeError(
                "the allocator saw only zero gradients, so the surviving ranks mean nothing: call "
                "update_and_allocate before optimizer.zero_grad()"
            )
        loaded = torch.stack([mask.to(self.mask.device) for mask in masks])  # (n, r)
        if not torch.equal(loaded, self.mask):
            warnings.warn(
                f"the weights loaded after training keep {int(loaded.sum())} singular values, the "
                f"last step kept {kept}: this checkpoint was taken before the ranks were final",
                stacklevel=3,
            )
        elif _flat(factors.lam, self._zero)[~self.mask.flatten()].any():
            raise RuntimeError(
                "pruned singular values are not zero: lora2_lambda was changed after the last "
                "update_and_allocate"
            )

    def _observe(self, flat: Tensor, weights: list[Tensor]) -> None:
        """Take this step's gradients into both averages; ``flat``: the weights."""
        now = (flat * _flat([_gradient(weight) for weight in weights], flat)).abs_()
        beta1, beta2 = self.config.beta1, self.config.beta2
        torch.lerp(self.averages[0], now, 1 - beta1, out=self._moved[0])
        # A step that the loss scaler of fp16 skipped has infinite gradients: it teaches nothing.
        finite = now.amax() < torch.inf
        deviation = now.sub_(self._moved[0]).abs_()
        torch.lerp(self.averages[1], deviation, 1 - beta2, out=self._moved[1])
        self.averages = torch.where(finite, self._moved, self.averages)

    def _scored(self, factors: Factors) -> list[Tensor]:
        both = factors.u + factors.V
        outer = [both[at] for group in self._outer for at in group]
        return [*factors.lam, *factors.v, *factors.U, *outer]

    def _check_step(self, step: int) -> None:
        if step > self.total_step:
            raise ValueError(
                f"step {step} is beyond total_step={self.total_step}: steps count optimiser steps "
                f"from 1, not micro-batches; set total_step to the whole training's steps"
            )
        if step != self.last_step + 1:
            raise ValueError(
                f"step {step} follows step {self.last_step}: call update_and_allocate once after "
                f"every optimiser step, counting from 1 (a resumed loop calls load_training_state "
                f"before its first step)"
            )


def budget(
    step: int, *, init_total: int, target_total: int, total_step: int, tinit: int, tfinal: int
) -> int:
    """Singular values kept over all matrices after optimiser step ``step`` (counted from 1).

    ``init_total`` up to ``tinit``, ``target_total`` from ``total_step - tfinal`` on, between them
    target + (init - target) (1 - (step - tinit) / (total_step - tinit - tfinal))^3, rounded down.
    """
    if step <= tinit:
        return init_total
    left = total_step - tfinal - step
    if left <= 0:
        return target_total
    span = total_step - tfinal - tinit
    return target_total + (init_total - target_total) * left**3 // span**3


def top_mask(scores: Tensor, kept: int, none: Tensor | None = None) -> Tensor:
    """(n, r) scores -> (n, r) booleans, True for the ``kept`` largest; of equals the earlier."""
    order = scores.flatten().argsort(descending=True, stable=True)  # (n * r,)
    none = torch.zeros_like(order, dtype=torch.bool) if none is None else none
    return none.scatter(0, order[:kept], True).view_as(scores)


def _gradient(weight: Tensor) -> Tensor:
    if weight.grad is not None:
        return weight.grad
    if not weight.requires_grad:
        return torch.zeros_like(weight)
    raise RuntimeError(
        "a LoRA2 parameter has no gradient: call update_and_allocate between optimizer.step() and "
        "optimizer.zero_grad(), and only after loss.backward() through every adapted module. "
        "DeepSpeed ZeRO-2 keeps no gradients there: prune under FSDP2 or DDP"
    )


def _flat(tensors: list[Tensor], like: Tensor) -> Tensor:
    flat = [whole(tensor).flatten().to(like.device) for tensor in tensors]
    return torch.cat(flat).to(like.dtype)


def _differences(own: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    if missing := sorted(set(own) ^ set(other)):
        return [f"entries present on one side only: {', '.join(missing)}"]
    problems = [
        f"{key} has shape {tuple(other[key].shape)}, this adapter needs {tuple(tensor.shape)}"
        for key, tensor in own.items()
        if tensor.shape != other[key].shape
    ]
    ours, theirs = int(own["total_step"]), int(other["total_step"])
    if ours != theirs:
        problems.append(f"it was made for total_step={theirs}, this run has {ours}")
    return problems
