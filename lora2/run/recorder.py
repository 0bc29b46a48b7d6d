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
from transformers import EvalPrediction, TrainerCallback, TrainerState

from lora2.glue.metrics import NonFinitePredictionsError, compute_splits, decide
from lora2.glue.tasks import Task, score
from lora2.records.files import flush_to_disk
from lora2.records.run_folder import LAST_FILE, keep_checkpoint

PLAIN = ("history", "train_seconds", "timed_steps", "loss")  # saved as JSON


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
        self.best = self.last = np.empty(0)  # (n,) predictions of the best and last evaluation
        self.train_seconds = 0.0  # optimiser steps only: no evaluation, no checkpoint
        self.timed_steps = 0
        self.loss = math.nan  # mean of training since the last log
        self._step_started = 0.0
        self._step = 0  # the current optimiser step, from 1
        self._losses: list[tuple[int, Tensor]] = []  # since the last log; on their device

    def compute_metrics(self, evaluation: EvalPrediction) -> dict[str, float]:
        """Return an evaluation's metrics, fractions, and the paper's "score", percentage points."""
        try:
            self.last = decide(self.task, evaluation.predictions)  # (n, num_labels) -> (n,)
        except NonFinitePredictionsError as error:
            raise Diverged(f"evaluation after step {self._step}: {error}") from error
        metrics = compute_splits(self.task, self.last, evaluation.label_ids, self.lengths)
        return metrics | {"score": score(self.task, metrics)}

    @property
    def best_row(self) -> dict[str, float]:
        return max(self.history, key=lambda row: row["score"])

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        kwargs["model"].register_forward_hook(self._watch)
        if state.global_step > 0:
            path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / LAST_FILE
            with np.load(path, allow_pickle=False) as saved:
                self.best, self.last, plain = saved["best"], saved["last"], str(saved["plain"])
            for name, value in json.loads(plain).items():
                setattr(self, name, value)

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._step_started = time.perf_counter()
        self._step = state.global_step + 1

    def _watch(self, model: nn.Module, inputs: Any, output: Any) -> None:
        """Keep a training loss without waiting for it, to name the first that was not finite."""
        if model.training and isinstance(loss := getattr(output, "loss", None), Tensor):
            self._losses.append((self._step, loss.detach()))

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available() and (control.should_evaluate or control.should_save):
            torch.cuda.synchronize()  # what is still queued belongs to training, not to evaluation
        self.train_seconds += time.perf_counter() - self._step_started
        self.timed_steps += 1
        if state.global_step >= state.max_steps:
            # The run folder comes next. From a checkpoint here a Trainer would take one step more.
            control.should_save = False

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if "loss" not in kwargs["logs"]:
            return
        self.loss = float(kwargs["logs"]["loss"])
        losses, self._losses = self._losses, []
        if not math.isfinite(self.loss):
            bad = (step for step, loss in losses if not math.isfinite(loss))
            raise Diverged(
                f"the training loss is {self.loss} at step {next(bad, state.global_step)}: try a "
                "lower train.learning_rate, or train.precision=fp32"
            )

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        metrics = kwargs["metrics"]
        names = (*self.task.metric_names, "score", "loss")
        row = {"step": state.global_step, "epoch": float(state.epoch or 0)}
        row |= {f"eval_{n}" if n == "loss" else n: metrics[f"eval_{n}"] for n in names}
        if not self.history or row["score"] > self.best_row["score"]:
            self.best = self.last
        self.history.append(row | {"train_loss": self.loss})

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # every process has written its random state
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            flush_to_disk(folder)
            plain = np.array(json.dumps({name: getattr(self, name) for name in PLAIN}))
            temporary = folder / "recorder.tmp.npz"
            np.savez(temporary, plain=plain, best=self.best, last=self.last)
            os.replace(temporary, folder / LAST_FILE)
            keep_checkpoint(folder.parent, folder)
