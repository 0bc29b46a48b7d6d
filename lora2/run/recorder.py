"""Record a run step by step: evaluations, the best of them, losses, time."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction, TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from lora2.glue.metrics import NonFinitePredictionsError, compute_splits, decide
from lora2.glue.tasks import Task, score
from lora2.records.files import flush_to_disk
from lora2.records.run_folder import LAST_FILE, keep_checkpoint


class Diverged(RuntimeError):
    """A loss or an output is not a finite number; the message says at which step."""


class Recorder(TrainerCallback):
    """Keep the history of evaluations and the best and last predictions.

    The best evaluation is the first with the highest score. The state is saved in checkpoints, so
    that a resumed run knows the evaluations before the stop.
    """

    def __init__(self, task: Task, lengths: Mapping[str, int]):
        self.task, self.lengths = task, dict(lengths)
        self.history: list[dict[str, float]] = []
        self.best: np.ndarray | None = None  # (n,) predictions of the best evaluation
        self.last: np.ndarray | None = None  # (n,)
        self.train_seconds = 0.0  # optimiser steps only: no evaluation, no checkpoint
        self.timed_steps = 0
        self._step_started = 0.0
        self._loss = math.nan
        self._step = 0  # the current optimiser step, from 1
        self._losses: list[tuple[int, Tensor]] = []  # since the last log; on their device

    def compute_metrics(self, evaluation: EvalPrediction) -> dict[str, float]:
        """Metrics of one evaluation (fractions) and "score" (percent points, the paper's rule)."""
        outputs = evaluation.predictions
        outputs = outputs[0] if isinstance(outputs, tuple) else outputs
        try:
            self.last = decide(self.task, outputs)  # (n, num_labels) -> (n,)
        except NonFinitePredictionsError as error:
            raise Diverged(f"evaluation after step {self._step}: {error}") from error
        metrics = compute_splits(self.task, self.last, evaluation.label_ids, self.lengths)
        return metrics | {"score": score(self.task, metrics)}

    @property
    def best_row(self) -> dict[str, float]:
        return max(self.history, key=lambda row: row["score"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        kwargs["model"].register_forward_hook(self._watch)
        if state.global_step > 0:
            self._load(Path(args.output_dir) / f"checkpoint-{state.global_step}" / LAST_FILE)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._step_started = time.perf_counter()
        self._step = state.global_step + 1

    def _watch(self, model: nn.Module, inputs: Any, output: Any) -> None:
        """Keep a training loss without waiting for it, to name the first that was not finite."""
        if model.training and isinstance(loss := getattr(output, "loss", None), Tensor):
            self._losses.append((self._step, loss.detach()))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if torch.cuda.is_available() and (control.should_evaluate or control.should_save):
            torch.cuda.synchronize()  # what is still queued belongs to training, not to evaluation
        self.train_seconds += time.perf_counter() - self._step_started
        self.timed_steps += 1
        if state.global_step >= state.max_steps:
            # The run folder comes next. From a checkpoint here a Trainer would take one step more.
            control.should_save = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:
            self._loss = float(logs["loss"])
            losses, self._losses = self._losses, []
            if not math.isfinite(self._loss):
                bad = [step for step, loss in losses if not math.isfinite(loss)]
                step = bad[0] if bad else state.global_step
                raise Diverged(
                    f"the training loss is {self._loss} at step {step}: try a lower "
                    "train.learning_rate, or train.precision=fp32"
                )

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        names = (*self.task.metric_names, "score", "loss")
        row = {"step": state.global_step, "epoch": float(state.epoch or 0)}
        row |= {f"eval_{n}" if n == "loss" else n: metrics[f"eval_{n}"] for n in names}
        if not self.history or row["score"] > self.best_row["score"]:
            self.best = self.last
        self.history.append(row | {"train_loss": self._loss})

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # every process has written its random state
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            flush_to_disk(folder)
            self._save(folder / LAST_FILE)
            keep_checkpoint(folder.parent, folder)

    def _save(self, path: Path) -> None:
        plain = {
            "history": self.history,
            "train_seconds": self.train_seconds,
            "timed_steps": self.timed_steps,
            "loss": self._loss,
        }
        empty = np.empty(0)
        temporary = path.with_suffix(".tmp.npz")
        np.savez(
            temporary,
            plain=np.array(json.dumps(plain)),
            best=empty if self.best is None else self.best,
            last=empty if self.last is None else self.last,
        )
        os.replace(temporary, path)

    def _load(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as saved:
            plain = json.loads(str(saved["plain"]))
            self.best = saved["best"] if len(plain["history"]) else None
            self.last = saved["last"] if len(plain["history"]) else None
        self.history = plain["history"]
        self.train_seconds, self.timed_steps = plain["train_seconds"], plain["timed_steps"]
        self._loss = plain["loss"]
