"""A tuner's own term of the loss, which no data enters: where it belongs, and that it acts once.

It acts once an optimiser step, by one of two ways. A forward pass in training mode adds it to the
loss that the model returns, and a hook notes whether a backward pass came to it. Where none did
(the loss is another: TRL's, ``compute_loss_func``, label smoothing), ``before_optimizer_step``
gives its gradient to the step, after the clipping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora2.tuners.share import share_of_step

# Why a tuner's saved state is refused.
OTHER_WEIGHTS = (
    "this state was not saved with the weights that are loaded: it is of another run or step. "
    "Resume with the state that lies beside them (Lora2Callback(resume_from_checkpoint=FOLDER))"
)


class OwnTerm:
    """Whether the backward passes since the last optimiser step came to the term."""

    def __init__(self) -> None:
        self.brought = False
        self.acted = False  # ever
        self.recomputed = False
        self._looks: list[Any] = []

    def watch(self, term: Tensor) -> Tensor:
        """Return ``term``, noted once a backward pass comes to it."""
        if torch.compiler.is_compiling():  # which knows no hooks on what lies within a graph
            self.note()
        elif term.requires_grad:
            term.register_hook(self.note)
        return term

    def note(self, _: Tensor | None = None) -> None:
        """Note that the term has acted."""
        self.brought = self.acted = True

    def begin(self, layers: Iterable[nn.Module]) -> None:
        """See a training pass begin; among several processes, see whether layers are recomputed.

        A layer that runs without a graph does so under reentrant checkpointing, and a backward pass
        of its own comes to its parameters later. DDP takes a parameter's gradient once: the term
        must not be in the loss then.
        """
        self.end()
        self.recomputed = False
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self._looks = [layer.register_forward_pre_hook(self._look) for layer in layers]

    def end(self) -> None:
        """See it end."""
        while self._looks:
            self._looks.pop().remove()

    def _look(self, *_: Any) -> None:
        self.recomputed = self.recomputed or not torch.is_grad_enabled()

    def missing(self) -> bool:
        """Whether this step's gradient lacks the term; from here on the next step counts."""
        missing, self.brought = not self.brought, False
        self.acted = True
        return missing


def add_gradient(term: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    """Add the gradient of ``term`` to that of each of its parameters, a few operations in all."""
    found = torch.autograd.grad(term, parameters, allow_unused=True)
    pairs = [(p, new) for p, new in zip(parameters, found, strict=True) if new is not None]
    old = [(p.grad, new) for p, new in pairs if p.grad is not None]
    for parameter, new in pairs:
        if parameter.grad is None:
            parameter.grad = new
    if old:
        torch._foreach_add_([grad for grad, _ in old], [new for _, new in old])


def add_to_loss(
    model: nn.Module, inputs: dict[str, Any], output: Any, term: Callable[[], Tensor]
) -> Any:
    """Return ``output`` with ``term()`` in its loss; as it is where it holds none."""

    def added(loss: Tensor) -> Tensor:
        share, value = share_of_step(model, inputs), term()
        value = value if share is None else value * share.to(value.device)
        return loss + value.to(loss.device)

    if isinstance(output, dict):
        if isinstance(loss := output.get("loss"), Tensor):
            output["loss"] = added(loss)
    elif isinstance(output, tuple) and inputs.get("labels") is not None:
        return (added(output[0]), *output[1:])
    return output


def hook_forward(model: nn.Module, tuner: nn.Module, handles: list[Any]) -> None:
    """Keep ``handles`` and ``tuner`` with the model it wraps; Lora2Callback looks for it there.

    An earlier tuner's are removed: where get_peft_model was called twice, one term is enough.
    """
    unhook_forward(model)
    # Past nn.Module, which would take the tuner for a part of the model.
    model.__dict__["_lora2_tuner"], model.__dict__["_lora2_hooks"] = tuner, handles


def unhook_forward(model: nn.Module) -> None:
    """Remove what ``hook_forward`` kept, if anything."""
    model.__dict__.pop("_lora2_tuner", None)
    for handle in model.__dict__.pop("_lora2_hooks", ()):
        handle.remove()
