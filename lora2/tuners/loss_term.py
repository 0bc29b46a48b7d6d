"""A method's own loss term, without data: LoRA2's regulariser, SoRA's sparsity term.

It acts once per optimiser step. A forward pass in training mode adds it to the loss that the model
returns, and a hook notes whether a backward pass reached it. If none did (TRL, label smoothing and
``compute_loss_func`` compute another loss), ``before_optimizer_step`` adds its gradient.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.loss import loss_utils

from lora2.tuners.base import AdapterModel

# Why a tuner's saved state is refused.
OTHER_WEIGHTS = (
    "this state was not saved with the weights that are loaded: it is of another run or step. "
    "Resume with the state in the same checkpoint (Lora2Callback(resume_from_checkpoint=FOLDER))"
)


class LossTerm:
    """Whether the backward passes since the last optimiser step reached the term.

    ``device``: the term's; None if nobody will ask what is missing.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.reached = False
        self.acted = False  # ever
        # A compiled pass has no hooks: there the gradient of this zero tells, without a sync.
        self._probe = None if device is None else torch.zeros((), device=device, requires_grad=True)

    def watch(self, term: Tensor) -> Tensor:
        """Return ``term``; a backward pass through it is noted."""
        if torch.compiler.is_compiling():
            self.acted = True
            return term if self._probe is None else term + self._probe
        if term.requires_grad:
            term.register_hook(self._note)
        return term

    def _note(self, _: Tensor | None = None) -> None:
        self.reached = self.acted = True

    def missing(self) -> bool | Tensor:
        """Tell whether this step's gradient lacks the term, and start the next step.

        A boolean on the device after compiled passes.
        """
        missing, self.reached = not self.reached, False
        self.acted = True
        if self._probe is None or self._probe.grad is None:
            return missing
        unreached, self._probe.grad = self._probe.grad == 0, None
        return unreached


class TermModel(AdapterModel):
    """A tuner that adds a term to the training loss and is driven by a training loop.

    Its hooks are on the wrapped model, which a PeftModel without a task type calls directly. A
    subclass defines ``_loss_term`` and ``_watch``, its layers ``kept`` and ``kept_parameters``.
    """

    _loss_term: ClassVar[Callable[..., Tensor]]  # of the trained adapter, a scalar

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._term = LossTerm()
        self._hands_on = hands_on_keywords(self.model)
        self._versions: list[int] = []  # of a trained parameter, while nobody drives the tuner
        self._warned = False
        _unhook(self.model)  # get_peft_model was called twice: one term is enough
        self.model.__dict__["_lora2_hooks"] = [
            self.model.register_forward_pre_hook(self._before_forward),
            self.model.register_forward_hook(self._add_term, with_kwargs=True),
            # Also after a forward that raised.
            self.model.register_forward_hook(self._after_forward, always_call=True),
            self.model.register_state_dict_pre_hook(partial(self._watch_training, saving=True)),
        ]
        # For Lora2Callback. Past nn.Module, which would register the tuner as a submodule.
        self.model.__dict__["_lora2_tuner"] = self

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        model: Any = super()._unload_and_optionally_merge(*args, **kwargs)
        _unhook(model)
        return model

    def kept_ranks(self) -> dict[str, list[bool]]:
        """Module name -> which of its r ranks survive, for the active adapter."""
        name = self._active()[0]
        return {n: layer.kept(name).tolist() for n, layer in self.adapted_layers(name).items()}

    def kept_parameters(self) -> int:
        """Return how many numbers of the active adapter survive."""
        name = self._active()[0]
        return sum(layer.kept_parameters(name) for layer in self.adapted_layers(name).values())

    def _watch(self, adapter: str, saving: bool) -> None:
        """Look at the trained adapter when a training pass or a saving begins."""
        raise NotImplementedError

    def _warn_undriven(self, parameter: Tensor, saving: bool, message: str) -> None:
        """Warn once if steps pass without the tuner's, by ``parameter``'s count of changes."""
        if self._warned or (saving and not self._versions):
            return
        if parameter._version not in self._versions:
            self._versions.append(parameter._version)
        if len(self._versions) > (1 if saving else 3):
            self._warned = True
            warnings.warn(message, stacklevel=2)

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._refuse_offloaded()
        compiling = torch.compiler.is_compiling()
        if module is self.model and module.training and torch.is_grad_enabled() and not compiling:
            self._watch_training()

    def _refuse_offloaded(self) -> None:
        for name in self._active():
            layer = self._first(name)
            if layer is None or not getattr(layer, layer.adapter_layer_names[0])[name].is_meta:
                continue
            if any(hasattr(module, "_hf_hook") for module in self.model.modules()):
                raise ValueError(
                    f"accelerate has offloaded adapter {name!r}, which {type(self).__name__} needs "
                    f"in memory: call merge_and_unload() before offloading, or load the adapter "
                    f"exported by lora2.export_lora as LoRA; train without offloading"
                )

    def _watch_training(self, *_: Any, saving: bool = False) -> None:
        for name in self._trainable():
            if self._is_on(name):
                self._watch(name, saving)

    def _after_forward(self, *_: Any) -> None:
        """Called when a forward pass of the wrapped model ends."""

    def _add_term(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Return ``output`` with the term in its loss; as it is where it has no loss."""
        # The module's own flag: a new PeftModel around a model in eval mode has training=True.
        training = module.training and any(self._is_on(name) for name in self._trainable())
        if not training:
            return output

        def added(loss: Tensor) -> Tensor:
            term = self._loss_term()
            weight = loss_weight(module, kwargs) if self._hands_on else None
            term = term if weight is None else term * weight.to(term.device)
            return loss + term.to(loss.device)

        if isinstance(output, dict):
            if isinstance(loss := output.get("loss"), Tensor):
                output["loss"] = added(loss)
        elif isinstance(output, tuple) and kwargs.get("labels") is not None:
            first, *others = output
            scalar = isinstance(first, Tensor) and first.dim() == 0  # not logits
            return (added(first), *others) if scalar else output
        return output

    def _active(self) -> list[str]:
        """Return the active adapters; transformers' set_adapter sets them on the layers alone."""
        first = next((self._first(name) for name, on in self._layers.items() if on), None)
        return self.active_adapters if first is None else first.active_adapters

    def _trainable(self) -> list[str]:
        """Return the active adapters with a parameter that is trained."""
        trained = []
        for name in self._active():  # plain loops: torch.compile reads them
            layer = self._first(name)
            for kind in () if layer is None else layer.adapter_layer_names:
                if getattr(layer, kind)[name].requires_grad:
                    trained.append(name)
                    break
        return trained

    def _trained(self) -> tuple[str, Any]:
        """Return name and settings of the one adapter that is trained."""
        if len(names := self._trainable()) != 1:
            raise ValueError(
                f"{type(self).__name__} trains one adapter at a time, but the active adapters in "
                f"training mode are {names}: choose one with set_adapter(name) (an adapter loaded "
                f"by from_pretrained needs is_trainable=True)"
            )
        return names[0], self.peft_config[names[0]]

    def _first(self, adapter: str) -> Any:
        return next(iter(self._layers.get(adapter, {}).values()), None)

    def _is_on(self, adapter: str) -> bool:
        """Tell whether a forward pass goes through the adapter, beside unmerged weights."""
        first = self._first(adapter)
        return first is not None and not (first.disable_adapters or first.merged)


def add_gradient(term: Tensor, parameters: Sequence[Tensor]) -> None:
    """Add the gradient of ``term`` to that of each of its parameters, in few operations."""
    if all(parameter.grad is None for parameter in parameters):
        raise RuntimeError(
            "the adapter has no gradients before the optimiser's step (DeepSpeed keeps them to "
            "itself), so its regulariser would be lost: add regularization_loss() to your loss"
        )
    old, added = list[Tensor](), list[Tensor]()
    gradients = torch.autograd.grad(term, parameters, allow_unused=True)
    for parameter, new in zip(parameters, gradients, strict=True):
        if parameter.grad is None:
            parameter.grad = new
        elif new is not None:
            old.append(parameter.grad)
            added.append(new)
    if old:
        torch._foreach_add_(old, added)


def hands_on_keywords(model: nn.Module) -> bool:
    """Tell whether the model's forward pass gives its loss function the keywords it is called with.

    Among them is ``num_items_in_batch``. BERT's does not, for one: its loss is a mean.
    """
    try:
        source = inspect.getsource(inspect.unwrap(type(model).forward))
    except (OSError, TypeError):  # no source
        return False
    return bool(re.search(r"[Ll]oss\w*\((?:[^()]|\([^()]*\))*\*\*", source))


def loss_weight(model: nn.Module, inputs: dict[str, Any]) -> Tensor | None:
    """Return this pass's part of the step's labels, a scalar; None where its loss is a mean.

    A transformers Trainer passes ``num_items_in_batch``, the labels of all micro-batches on all
    processes (without -100 and, where labels are shifted, the first of each row). Where a model
    ``hands_on_keywords``, its loss is a sum divided by that number, and the Trainer adds up these
    losses: other terms need the same weight, or gradient accumulation multiplies them.
    """
    total, labels = inputs.get("num_items_in_batch"), inputs.get("labels")
    if total is None or not isinstance(labels, Tensor):
        return None
    config, causal = getattr(model, "config", None), loss_utils.ForCausalLMLoss
    loss = getattr(model, "loss_function", None)
    divides = loss in (causal, loss_utils.ForMaskedLMLoss, loss_utils.ForTokenClassification)
    single = getattr(config, "problem_type", None) == "single_label_classification"
    if not (divides or (single and loss is loss_utils.ForSequenceClassificationLoss)):
        return None
    shifts = loss_utils.LOSS_MAPPING.get(getattr(model, "loss_type", "")) is causal
    shifts = shifts and not getattr(config, "is_encoder_decoder", False)  # as the Trainer counts
    counted = inputs.get("shift_labels")
    counted = labels[..., shifts:] if counted is None else counted
    whole = total.to(counted.device) if isinstance(total, Tensor) else total
    return counted.ne(-100).sum() / whole


def _unhook(model: nn.Module) -> None:
    model.__dict__.pop("_lora2_tuner", None)
    for handle in model.__dict__.pop("_lora2_hooks", ()):
        handle.remove()
