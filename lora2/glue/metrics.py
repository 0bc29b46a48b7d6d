"""Compute the metrics of an evaluation, as an ``evaluate`` metric over scikit-learn and scipy.

``evaluate.load("lora2/glue/metrics.py", "rte")`` loads this file as well, and copies it alone into
its module cache.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import cache

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from lora2.glue.tasks import Task, get_task, metric_prefix


class NonFinitePredictionsError(ValueError):
    """A model's outputs hold NaN or infinity: the run has diverged."""


class GlueMetric(evaluate.Metric):
    """Predictions and references, shape (n,) each -> the task's metrics, as fractions of 1."""

    def _info(self) -> evaluate.MetricInfo:
        task = get_task(self.config_name)
        value = datasets.Value("float64" if task.is_regression else "int64")
        return evaluate.MetricInfo(
            description=f"Metrics of the GLUE task {task.name}: {', '.join(task.metrics)}.",
            citation="Wang et al., GLUE, ICLR 2019 (arXiv 1804.07461)",
            inputs_description="predictions and references: class numbers, or floats for stsb",
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        labels, guesses = np.asarray(references), np.asarray(predictions)  # (n,), (n,)
        names = get_task(self.config_name).metrics
        return {name: float(_FUNCTIONS[name](labels, guesses)) for name in names}


def compute(task: str | Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Compute the metrics of one split, as fractions of 1 (not percent).

    Args:
        predictions: (n,) class numbers, or similarities for STS-B.
        labels: (n,) likewise.

    A correlation over constant predictions or labels is undefined; 0.0 is returned, with a warning.

    Raises:
        NonFinitePredictionsError: NaN or infinity among the predictions.
        ValueError: shapes differ or are not (n,), too few rows, or a class out of range.
    """
    task = get_task(task) if isinstance(task, str) else task
    predictions, labels = np.asarray(predictions), np.asarray(labels)  # (n,), (n,)
    _check(task, predictions, labels)
    result = _metric(task.name).compute(predictions=predictions, references=labels)
    return {name: float(result[name]) for name in task.metrics}


def compute_splits(
    task: str | Task, predictions: np.ndarray, labels: np.ndarray, lengths: Mapping[str, int]
) -> dict[str, float]:
    """Compute the metrics of concatenated validation splits.

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
    """Turn model outputs (n, num_labels) into predictions (n,): largest class, or similarity.

    (n,) is accepted for (n, 1): DeBERTa's regression head returns that.

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


@cache
def _metric(task_name: str) -> GlueMetric:
    # evaluate creates a folder even if it keeps everything in memory. The home folder may be
    # read-only, so it gets a temporary one.
    with tempfile.TemporaryDirectory() as folder:
        return GlueMetric(config_name=task_name, keep_in_memory=True, cache_dir=folder)


def _correlation(function: Callable) -> Callable[[np.ndarray, np.ndarray], float]:
    def correlate(labels: np.ndarray, predictions: np.ndarray) -> float:
        for name, values in (("predictions", predictions), ("labels", labels)):
            if np.ptp(values) == 0.0:
                warnings.warn(
                    f"all {len(values)} {name} are equal, so a correlation is undefined; 0.0 is "
                    "given",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return 0.0
        return function(labels, predictions).statistic

    return correlate


_FUNCTIONS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy_score,
    "f1": lambda labels, predictions: f1_score(labels, predictions, zero_division=0.0),
    "matthews_correlation": matthews_corrcoef,
    "pearson": _correlation(pearsonr),
    "spearman": _correlation(spearmanr),
}


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
