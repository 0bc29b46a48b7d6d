"""Compute the metrics of an evaluation, as an ``evaluate`` metric over scikit-learn and scipy.

``evaluate.load("lora2/glue/metrics.py", "rte")`` loads this file as well, and copies it alone into
its module cache.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import cache

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from lora2.glue.tasks import TASKS, Task, metric_prefix


class NonFinitePredictionsError(ValueError):
    """A model's outputs hold NaN or infinity: the run has diverged."""


class GlueMetric(evaluate.Metric):
    """Predictions and references, shape (n,) each -> the task's metrics, as fractions of 1."""

    def _info(self) -> evaluate.MetricInfo:
        task = TASKS[self.config_name]
        value = datasets.Value("float64" if task.is_regression else "int64")
        return evaluate.MetricInfo(
            description=f"Metrics of the GLUE task {task.name}: {', '.join(task.metrics)}.",
            citation="Wang et al., GLUE, ICLR 2019 (arXiv 1804.07461)",
            inputs_description="predictions and references: class numbers, or floats for stsb",
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        labels, guesses = np.asarray(references), np.asarray(predictions)  # (n,), (n,)
        names = TASKS[self.config_name].metrics
        return {name: float(_FUNCTIONS[name](labels, guesses)) for name in names}


def compute(task_name: str, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Compute the metrics of one split, as fractions of 1 (not percent).

    ``predictions`` and ``labels`` are (n,) class numbers, or similarities for STS-B. A correlation
    over constant predictions or labels is undefined; 0.0 is returned, with scipy's warning.
    """
    return _metric(task_name).compute(predictions=predictions, references=labels)


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
    Raises NonFinitePredictionsError: NaN or infinity, which argmax would hide.
    """
    outputs = outputs[:, None] if outputs.ndim == 1 else outputs  # (n,) -> (n, 1)
    if bad := int(np.sum(~np.isfinite(outputs).all(axis=1))):
        raise NonFinitePredictionsError(
            f"{task.name}: outputs for {bad} of {len(outputs)} rows are NaN or infinite; the run "
            "has diverged (try a lower learning rate, or full precision)"
        )
    return outputs[:, 0] if task.is_regression else outputs.argmax(axis=1)


@cache
def _metric(task_name: str) -> GlueMetric:
    # evaluate creates a folder even if it keeps everything in memory. The home folder may be
    # read-only, so it gets a temporary one.
    with tempfile.TemporaryDirectory() as folder:
        return GlueMetric(config_name=task_name, keep_in_memory=True, cache_dir=folder)


_FUNCTIONS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy_score,
    "f1": lambda labels, predictions: f1_score(labels, predictions, zero_division=0.0),
    "matthews_correlation": matthews_corrcoef,
    "pearson": lambda labels, predictions: np.nan_to_num(pearsonr(labels, predictions).statistic),
    "spearman": lambda labels, predictions: np.nan_to_num(spearmanr(labels, predictions).statistic),
}
