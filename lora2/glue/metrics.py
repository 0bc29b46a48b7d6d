"""Metrics of an evaluation, by the metric module of this package through ``evaluate``."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lora2.glue.tasks import Task, get_task, metric_prefix, score

if TYPE_CHECKING:
    import evaluate
    from transformers import EvalPrediction

SCRIPT = Path(__file__).parent / "metric_module" / "glue_metric.py"


class NonFinitePredictionsError(ValueError):
    """A model's outputs hold NaN or infinity: the run has diverged."""


def compute(task: str | Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Metrics of one split, as fractions of 1 (not percent).

    Args:
        predictions: (n,) class numbers, or similarities for STS-B.
        labels: (n,) likewise.

    A correlation over constant predictions or labels is undefined; 0.0 is given, with a warning.

    Raises:
        NonFinitePredictionsError: NaN or infinity among the predictions.
        ValueError: shapes differ or are not (n,), too few rows, or a class out of range.
    """
    task = get_task(task) if isinstance(task, str) else task
    predictions, labels = np.asarray(predictions), np.asarray(labels)  # (n,), (n,)
    _check(task, predictions, labels)
    metric = _load(task.name)
    result = metric.compute(predictions=predictions, references=labels)
    return {name: float(result[name]) for name in task.metrics}


def compute_splits(
    task: str | Task, predictions: np.ndarray, labels: np.ndarray, lengths: Mapping[str, int]
) -> dict[str, float]:
    """Metrics over validation splits laid end to end.

    Args:
        predictions: (n,) as for ``compute``, all splits concatenated.
        labels: (n,) likewise.
        lengths: rows of each split, in order, summing to n. MNLI's validation_matched and
            validation_mismatched give the keys matched_accuracy and mismatched_accuracy.

    Raises:
        ValueError: the lengths do not sum to n; also all that ``compute`` raises.
    """
    if sum(lengths.values()) != len(predictions) or len(predictions) != len(labels):
        raise ValueError(
            f"splits of {dict(lengths)} rows do not make up {len(predictions)} predictions and "
            f"{len(labels)} labels"
        )
    result: dict[str, float] = {}
    start = 0
    for split, length in lengths.items():
        rows = slice(start, start + length)
        part = compute(task, predictions[rows], labels[rows])
        result |= {metric_prefix(split) + name: value for name, value in part.items()}
        start += length
    return result


def decide(task: Task, outputs: np.ndarray) -> np.ndarray:
    """Model outputs (n, num_labels) -> predictions (n,): the largest class, or the similarity.

    DeBERTa's regression head gives (n,) instead of (n, 1); that is taken too.

    Raises:
        NonFinitePredictionsError: NaN or infinity, which argmax would hide.
        ValueError: a shape other than (n, num_labels).
    """
    outputs = np.asarray(outputs)
    if task.is_regression and outputs.ndim == 1:
        outputs = outputs[:, None]  # (n,) -> (n, 1)
    if outputs.ndim != 2 or outputs.shape[1] != task.num_labels:
        raise ValueError(
            f"{task.name}: outputs of shape {outputs.shape}, not (n, {task.num_labels})"
        )
    _check_finite(task, outputs)
    return outputs[:, 0] if task.is_regression else outputs.argmax(axis=1)


def trainer_metrics(
    task: Task, lengths: Mapping[str, int]
) -> Callable[[EvalPrediction], dict[str, float]]:
    """A ``compute_metrics`` for a Trainer that evaluates the splits of ``lengths`` end to end.

    Its result holds the task's metrics (fractions) and "score" (percent points, the paper's rule).
    """

    def compute_metrics(evaluation: EvalPrediction) -> dict[str, float]:
        outputs = evaluation.predictions
        outputs = outputs[0] if isinstance(outputs, tuple) else outputs
        labels = np.asarray(evaluation.label_ids)  # (n,)
        metrics = compute_splits(task, decide(task, outputs), labels, lengths)
        return metrics | {"score": score(task, metrics)}

    return compute_metrics


def _check_finite(task: Task, values: np.ndarray) -> None:
    bad = int(np.sum(~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))))
    if bad:
        raise NonFinitePredictionsError(
            f"{task.name}: outputs for {bad} of {len(values)} rows are NaN or infinite; the run "
            "has diverged (try a lower learning rate, or full precision)"
        )


def _check(task: Task, predictions: np.ndarray, labels: np.ndarray) -> None:
    if predictions.ndim != 1 or predictions.shape != labels.shape:
        raise ValueError(
            f"{task.name}: predictions {predictions.shape} and labels {labels.shape} must both be "
            "(n,)"
        )
    least = 2 if task.is_regression else 1
    if len(labels) < least:
        raise ValueError(f"{task.name}: {len(labels)} rows; its metrics need at least {least}")
    _check_finite(task, predictions)
    for name, values in (("predictions", predictions), ("labels", labels)):
        if not task.is_regression and not np.isin(values, range(task.num_labels)).all():
            raise ValueError(f"{task.name}: {name} must be class numbers below {task.num_labels}")
        if task.is_regression and not np.isfinite(values).all():
            raise ValueError(f"{task.name}: {name} must be finite")


@cache
def _scratch() -> tempfile.TemporaryDirectory:
    """A folder of this process alone, removed at its end, unless it is killed."""
    return tempfile.TemporaryDirectory(prefix="lora2-metrics-")


@cache
def _load(task_name: str) -> evaluate.EvaluationModule:
    try:
        return _evaluate_load(task_name, None)
    except OSError:
        # evaluate copies the script into its module cache and makes an empty folder in its cache of
        # metrics, which must be writable. Where the home folder is not, this process gets its own.
        from evaluate import config

        while str(config.HF_MODULES_CACHE) in sys.path:
            sys.path.remove(str(config.HF_MODULES_CACHE))
        config.HF_MODULES_CACHE = Path(_scratch().name)
        return _evaluate_load(task_name, _scratch().name)


def _evaluate_load(task_name: str, cache: str | None) -> evaluate.EvaluationModule:
    import evaluate

    return evaluate.load(
        str(SCRIPT),
        config_name=task_name,
        keep_in_memory=True,
        cache_dir=cache,
        experiment_id=str(os.getpid()),
    )
