"""Drive a tuner of this package from a transformers Trainer."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

from accelerate.utils import extract_model_from_parallel
from peft.tuners.tuners_utils import BaseTuner
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerState

TUNER_STATE_NAME = "tuner_state.safetensors"
_HOOKS = ("prepare_training", "before_optimizer_step", "after_optimizer_step", "finish_training")


class Lora2Callback(TrainerCallback):
    """``Trainer(..., callbacks=[Lora2Callback()])``: all that LoRA2 and SoRA need in training.

    Calls the hooks that the PeftModel's tuner defines: ``prepare_training(max_steps)`` at the
    start, ``before_optimizer_step`` and ``after_optimizer_step`` around each optimiser step
    (counted from 1; gradients are present, clipped and unscaled), and ``finish_training`` at
    the end. ``training_state`` is written into every checkpoint and read back on resuming.
    For a separate learning rate of lambda see ``create_lora2_optimizer``.

    Args:
        resume_from_checkpoint: the folder with the tuner's state; None takes the one given to
            ``trainer.train(resume_from_checkpoint=...)``.
        driver: an object with these hooks; None takes the model's tuner.

    Raises:
        TypeError: at the start, the model has no tuner, or several.
        FileNotFoundError: a training resumes, and the tuner's state is missing.
        ValueError: likewise, the state was not saved with the weights that are loaded.
    """

    def __init__(
        self, resume_from_checkpoint: str | os.PathLike[str] | None = None, *, driver: Any = None
    ) -> None:
        self._checkpoint, self._driver = resume_from_checkpoint, driver
        self._found: tuple[Any, Any] = (None, None)  # a model and its tuner

    def _hooks_of(self, model: nn.Module) -> Any:
        if self._driver is not None:
            return self._driver
        if self._found[0] is not model:
            self._found = model, _find_tuner(model)
        return self._found[1]

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._found = (None, None)
        tuner = self._hooks_of(kwargs["model"])
        if not any(hasattr(type(tuner), hook) for hook in _HOOKS):
            warnings.warn(
                f"{type(tuner).__name__} needs no Lora2Callback: it does nothing here", stacklevel=2
            )
        call_hook(tuner, "prepare_training", state.max_steps)
        if state.global_step > 0:
            folder = self._checkpoint or _folder_given_to_train() or _checkpoint_folder(args, state)
            path = Path(folder) / TUNER_STATE_NAME
            if path.is_file():
                call_hook(tuner, "load_training_state", load_file(path))
            elif call_hook(tuner, "training_state"):
                raise FileNotFoundError(
                    f"cannot resume: {path} is missing. It is written beside each checkpoint while "
                    f"Lora2Callback is among the Trainer's callbacks; for a checkpoint elsewhere, "
                    f"use Lora2Callback(resume_from_checkpoint=FOLDER)"
                )

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        optimizer: Any = kwargs.get("optimizer")
        if getattr(optimizer, "scaler", None) is not None:  # of fp16
            with contextlib.suppress(RuntimeError):  # unscaled already, for clipping
                optimizer.scaler.unscale_(optimizer.optimizer)
        call_hook(self._hooks_of(kwargs["model"]), "before_optimizer_step", state.global_step + 1)

    def on_optimizer_step(self, args: Any, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        call_hook(self._hooks_of(kwargs["model"]), "after_optimizer_step", state.global_step + 1)

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        tensors = call_hook(self._hooks_of(kwargs["model"]), "training_state")
        if tensors and args.should_save:
            path = _checkpoint_folder(args, state) / TUNER_STATE_NAME
            save_file({k: v.contiguous() for k, v in tensors.items()}, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        tuner = self._hooks_of(kwargs["model"])
        if state.global_step >= state.max_steps:
            call_hook(tuner, "finish_training")
        elif call_hook(tuner, "training_state"):
            where = f"step {state.global_step} of {state.max_steps}"
            warnings.warn(f"training stopped at {where}: ranks are not final", stacklevel=2)


def _find_tuner(model: nn.Module) -> Any:
    """Return a PeftModel's tuner, or that of the one model inside with an adapter."""
    inner = extract_model_from_parallel(model)
    tuner = getattr(inner, "base_model", None)
    if isinstance(tuner, BaseTuner):
        return tuner
    tuners = [vars(m)["_lora2_tuner"] for m in inner.modules() if "_lora2_tuner" in vars(m)]
    if len(tuners) == 1:
        return tuners[0]
    raise TypeError(
        f"a model with one adapted part is needed, but this {type(model).__name__} has "
        f"{len(tuners)}: pass get_peft_model(model, Lora2Config(...)), or call "
        f"model.add_adapter(Lora2Config(...)) first"
    )


def kept_ranks(model: nn.Module) -> dict[str, list[bool]]:
    """Return module name -> which of its r ranks survive, for the active LoRA2 or SoRA adapter."""
    return _find_tuner(model).kept_ranks()


def call_hook(tuner: Any, hook: str, *args: Any) -> Any:
    """Call a hook and return its result, or None if the tuner's class does not have it."""
    # On the class: a tuner forwards unknown attributes to the model it wraps.
    return getattr(tuner, hook)(*args) if hasattr(type(tuner), hook) else None


def _checkpoint_folder(args: Any, state: TrainerState) -> Path:
    folder, name = Path(str(args.output_dir)), f"checkpoint-{state.global_step}"
    if state.is_hyper_param_search:  # in the folder of the trial
        return max(folder.glob(f"*/{name}"), key=os.path.getmtime)
    return folder / name


def _folder_given_to_train() -> str | os.PathLike[str] | None:
    """Return the folder given to ``Trainer.train``, which only that call's frame holds, or None."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_name != "_inner_training_loop":
        frame = frame.f_back
    folder = None if frame is None else frame.f_locals.get("resume_from_checkpoint")
    return folder if isinstance(folder, str | os.PathLike) else None
