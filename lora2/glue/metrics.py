"""Compute the metrics of an evaluation with scikit-learn and scipy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from lora2.glue.tasks import TASKS, Task, metric_prefix


class NonFinitePredictionsError(ValueError):
    """A model's outputs hold NaN or infinity: the run has diverged."""


def compute(task_name: str, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Compute the metrics of one split, as fractions of 1 (not percent).

    ``predictions`` and ``labels`` are (n,) class numbers, or similarities for STS-B. A correlation
    over constant predictions or labels is undefined; 0.0 is returned, with a warning.
    """
    kind = np.float64 if TASKS[task_name].is_regression else np.int64
    values = labels.astype(kind), predictions.astype(kind)
    return {name: float(_FUNCTIONS[name](*values)) for name in TASKS[task_name].metrics}


def compute_splits(
    task: Task, predictions: np.ndarray, labels: np.ndarray, lengths: Mapping[str, int]
) -> dict[str, float]:
    """Compute the metrics of concatenated validation splits, (n,) as for ``compute``.

    ``lengths`` are the rows of each split, in order, summing to n. MNLI's validation_matched and
    validation_mismatched give the keys matched_accuracy and mismatched_accuracy.
    """
    ends = np.cumsum(list(lengths.values()))
    parts = (np.split(values, ends[:-1]) for values in (predictions, labels))
    return {
        metric_prefix(split) + name: value
        for split, guesses, truth in zip(lengths, *parts, strict=True)
        for name, value in compute(task.name, guesses, truth).items()
    }


def decide(task: Task, outputs: np.ndarray) -> np.ndarray:
    """Turn model outputs (n, num_labels) into predictions (n,): largest class, or similarity.

    (n,) is accepted for (n, 1): DeBERTa's regression head returns that.

    Raises:
        NonFinitePredictionsError: NaN or infinity, which argmax would hide.
    """
    outputs = outputs[:, None] if outputs.ndim == 1 else outputs  # (n,) -> (n, 1)
    if bad := int(np.sum(~np.isfinite(outputs).all(axis=1))):
        raise NonFinitePredictionsError(
            f"{task.name}: outputs for {bad} of {len(outputs)} rows are NaN or infinite; the run "
            "has diverged (try a lower learning rate, or full precision)"
        )
    return outputs[:, 0] if task.is_regression else outputs.argmax(axis=1)


def _correlation(function: Callable[..., Any]) -> Callable[[np.ndarray, np.ndarray], float]:
    def correlate(labels: np.ndarray, predictions: np.ndarray) -> float:
        for name, values in (("predictions", predictions), ("labels", labels)):
            if np.ptp(values) == 0.0:
                warnings.warn(
                    f"all {len(values)} {name} are equal: a correlation is undefined, 0.0 is used",
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
