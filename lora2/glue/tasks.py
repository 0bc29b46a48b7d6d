"""The eight GLUE tasks of the paper: columns, labels, metrics, official sizes, and the score.

Only the standard library is imported, so that a command line can list tasks at once.
Row counts are those of the data set card of ``nyu-mll/glue`` (Wang et al., 2019).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Task:
    """One GLUE task.

    ``metrics`` are computed on each validation split; ``metric_names`` are the keys a whole
    evaluation has, and ``score_metrics`` those whose mean is the number the paper averages.
    ``rows`` gives the official row count of each split, in the order train, validation.
    """

    name: str
    text_columns: tuple[str, ...]
    label_names: tuple[str, ...]  # empty: regression
    metrics: tuple[str, ...]
    score_metrics: tuple[str, ...]
    rows: Mapping[str, int] = field(hash=False)

    @property
    def is_regression(self) -> bool:
        """True for STS-B, whose label is a similarity from 0 to 5."""
        return not self.label_names

    @property
    def num_labels(self) -> int:
        """Width of the classification head; 1 for regression."""
        return len(self.label_names) or 1

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns of a split, in the order of the data set."""
        return (*self.text_columns, "label", "idx")

    @property
    def validation_splits(self) -> tuple[str, ...]:
        """Official validation splits; two for MNLI, matched first."""
        return tuple(split for split in self.rows if split != "train")

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Keys of one evaluation over all validation splits."""
        return tuple(
            metric_prefix(split) + metric
            for split in self.validation_splits
            for metric in self.metrics
        )


def metric_prefix(split: str) -> str:
    """The prefix of a split's metrics: ``validation_matched`` gives ``matched_``, others none."""
    _, _, suffix = split.partition("_")
    return f"{suffix}_" if suffix in ("matched", "mismatched") else ""


def score(task: Task, metrics: Mapping[str, float]) -> float:
    """The paper's number for one evaluation, in percent points.

    Matthews correlation for CoLA, Pearson correlation for STS-B, the mean of accuracy and F1 for
    QQP, the mean of matched and mismatched accuracy for MNLI, accuracy for the others (MRPC too).

    Raises:
        ValueError: a metric the score needs is absent or not finite.
    """
    missing = [name for name in task.score_metrics if name not in metrics]
    if missing:
        raise ValueError(
            f"{task.name}: the score needs {', '.join(task.score_metrics)}; "
            f"missing {', '.join(missing)} among {sorted(metrics)}"
        )
    values = [float(metrics[name]) for name in task.score_metrics]
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"{task.name}: metrics are not finite: {dict(metrics)}")
    return 100.0 * sum(values) / len(values)


_ENTAILMENT = ("entailment", "not_entailment")

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="cola",
            text_columns=("sentence",),
            label_names=("unacceptable", "acceptable"),
            metrics=("matthews_correlation",),
            score_metrics=("matthews_correlation",),
            rows={"train": 8551, "validation": 1043},
        ),
        Task(
            name="sst2",
            text_columns=("sentence",),
            label_names=("negative", "positive"),
            metrics=("accuracy",),
            score_metrics=("accuracy",),
            rows={"train": 67349, "validation": 872},
        ),
        Task(
            name="mrpc",
            text_columns=("sentence1", "sentence2"),
            label_names=("not_equivalent", "equivalent"),
            metrics=("accuracy", "f1"),
            score_metrics=("accuracy",),
            rows={"train": 3668, "validation": 408},
        ),
        Task(
            name="qqp",
            text_columns=("question1", "question2"),
            label_names=("not_duplicate", "duplicate"),
            metrics=("accuracy", "f1"),
            score_metrics=("accuracy", "f1"),
            rows={"train": 363846, "validation": 40430},
        ),
        Task(
            name="stsb",
            text_columns=("sentence1", "sentence2"),
            label_names=(),
            metrics=("pearson", "spearman"),
            score_metrics=("pearson",),
            rows={"train": 5749, "validation": 1500},
        ),
        Task(
            name="mnli",
            text_columns=("premise", "hypothesis"),
            label_names=("entailment", "neutral", "contradiction"),
            metrics=("accuracy",),
            score_metrics=("matched_accuracy", "mismatched_accuracy"),
            rows={"train": 392702, "validation_matched": 9815, "validation_mismatched": 9832},
        ),
        Task(
            name="qnli",
            text_columns=("question", "sentence"),
            label_names=_ENTAILMENT,
            metrics=("accuracy",),
            score_metrics=("accuracy",),
            rows={"train": 104743, "validation": 5463},
        ),
        Task(
            name="rte",
            text_columns=("sentence1", "sentence2"),
            label_names=_ENTAILMENT,
            metrics=("accuracy",),
            score_metrics=("accuracy",),
            rows={"train": 2490, "validation": 277},
        ),
    )
}


def get_task(name: str) -> Task:
    """The task called ``name``.

    Raises:
        ValueError: no such task; the message lists the eight.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; type one of: {' '.join(TASKS)}")
    return TASKS[name]
