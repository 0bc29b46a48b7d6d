"""Drive a tuner of this package from a transformers Trainer."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from accelerate.utils import extract_model_from_parallel
from peft.tuners.tuners_utils import BaseTuner
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

TUNER_STATE_NAME = "tuner_state.safetensors"
_HOOKS = ("prepare_training", "before_optimizer_step", "after_optimizer_step", "finish_training")


class Lora2Callback(TrainerCallback):
    """``Trainer(..., callbacks=[Lora2Callback()])``: all that LoRA2 and its relatives need.

    Calls the hooks that the PeftModel's tuner defines: ``prepare_training(max_steps)`` at the
    start, ``before_optimizer_step`` and ``after_optimizer_step`` around each optimiser step
    (counted from 1, gradients there), and ``finish_training`` at the end. The tuner's
    ``training_state`` is written into every checkpoint and read back when a training resumes.

    Args:
        resume_from_checkpoint: the folder given to ``trainer.train(resume_from_checkpoint=...)``,
            when it is not ``<output_dir>/checkpoint-<step>``.
        driver: an object with these hooks, for a tuner of PEFT's own that lacks them; None takes
            the model's tuner.

    Raises:
        TypeError: at the start, the model is no PeftModel with a tuner.
        FileNotFoundError: at the start of a resumed training, the tuner's state is missing.
    """

    def __init__(
        self,
        resume_from_checkpoint: str | os.PathLike[str] | None = None,
        *,
        driver: Any = None,
    ) -> None:
        self._checkpoint = resume_from_checkpoint
        self._driver = driver

    def _driven(self, model: nn.Module) -> Any:
        return _tuner(model) if self._driver is None else self._driver

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        tuner = self._driven(kwargs["model"])
        if not any(hasattr(type(tuner), hook) for hook in _HOOKS):
            warnings.warn(
                f"{type(tuner).__name__} needs no Lora2Callback: it does nothing here", stacklevel=2
            )
        _call(tuner, "prepare_training", state.max_steps)
        if state.global_step > 0:
            folder = self._checkpoint or _checkpoint_folder(args, state)
            _load_state(tuner, Path(folder) / TUNER_STATE_NAME)

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        _call(self._driven(kwargs["model"]), "before_optimizer_step", state.global_step + 1)

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        _call(self._driven(kwargs["model"]), "after_optimizer_step", state.global_step + 1)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        tensors = _call(self._driven(kwargs["model"]), "training_state")
        if tensors and args.should_save:
            path = _checkpoint_folder(args, state) / TUNER_STATE_NAME
            unfinished = path.with_suffix(".tmp")
            save_file({key: value.contiguous() for key, value in tensors.items()}, unfinished)
            unfinished.replace(path)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if state.global_step >= state.max_steps:
            _call(self._driven(kwargs["model"]), "finish_training")
            return
        warnings.warn(
            f"training stopped at step {state.global_step} of {state.max_steps}: what the tuner "
            f"had planned for the later steps (such as its final ranks) was not reached",
            stacklevel=2,
        )


def _tuner(model: nn.Module) -> BaseTuner:
    """The tuner inside a PeftModel that may be wrapped for data parallelism or compiled."""
    tuner = getattr(extract_model_from_parallel(model), "base_model", None)
    if not isinstance(tuner, BaseTuner):
        raise TypeError(
            f"Lora2Callback drives the tuner of a PeftModel, but the Trainer's model is a "
            f"{type(model).__name__}: pass get_peft_model(model, Lora2Config(...)) to the Trainer"
        )
    return tuner


def _call(tuner: Any, hook: str, *args: Any) -> Any:
    # On the class: a tuner forwards unknown attributes to the model it wraps.
    return getattr(tuner, hook)(*args) if hasattr(type(tuner), hook) else None


def _checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


def _load_state(tuner: Any, path: Path) -> None:
    if not _call(tuner, "training_state"):
        return
    if not path.is_file():
        raise FileNotFoundError(
            f"cannot resume: {path} is missing. It is written beside each checkpoint while "
            f"Lora2Callback is among the Trainer's callbacks; for a checkpoint elsewhere, use "
            f"Lora2Callback(resume_from_checkpoint=FOLDER)"
        )
    _call(tuner, "load_training_state", load_file(path))
