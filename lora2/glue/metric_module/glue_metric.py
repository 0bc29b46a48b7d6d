"""The GLUE metrics as an ``evaluate`` metric; the configuration name is the task's.

Arithmetic is scikit-learn's and scipy's. ``evaluate.load`` copies this one file into its module
cache, so it may import packages but no sibling file.
"""

from __future__ import annotations

import warnings

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from lora2.glue.tasks import get_task


def _f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    return f1_score(labels, predictions, zero_division=0.0)


def _correlation(function, labels: np.ndarray, predictions: np.ndarray) -> float:
    for name, values in (("predictions", predictions), ("labels", labels)):
        if np.ptp(values) == 0.0:
            warnings.warn(
                f"all {len(values)} {name} are equal, so a correlation is undefined; 0.0 is given",
                RuntimeWarning,
                stacklevel=2,
            )
            return 0.0
    return function(labels, predictions).statistic


def _pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
    return _correlation(pearsonr, labels, predictions)


def _spearman(labels: np.ndarray, predictions: np.ndarray) -> float:
    return _correlation(spearmanr, labels, predictions)


_FUNCTIONS = {
    "accuracy": accuracy_score,
    "f1": _f1,
    "matthews_correlation": matthews_corrcoef,
    "pearson": _pearson,
    "spearman": _spearman,
}


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

    def _compute(self, predictions, references) -> dict[str, float]:
        labels, guesses = np.asarray(references), np.asarray(predictions)  # (n,), (n,)
        names = get_task(self.config_name).metrics
        return {name: float(_FUNCTIONS[name](labels, guesses)) for name in names}
