"""Describe the eight GLUE tasks of the paper: columns, labels, metrics, sizes, the score.

Only the standard library is imported, so that the command line starts fast.
Row counts are those of the data set card of ``nyu-mll/glue`` (Wang et al., 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

REPOSITORY = "nyu-mll/glue"  # of the data on the hub


@dataclass(frozen=True)
class Task:
    """One GLUE task; ``rows`` has the official row count of each split, train first."""

    name: str
    text_columns: tuple[str, ...]
    label_names: tuple[str, ...]  # empty: regression
    metrics: tuple[str, ...]  # computed on each validation split
    rows: Mapping[str, int] = field(hash=False)
    score_metrics: tuple[str, ...] = ()  # their mean is the paper's number; empty: the first metric

    def __post_init__(self) -> None:
        object.__setattr__(self, "score_metrics", self.score_metrics or self.metrics[:1])

    @property
    def is_regression(self) -> bool:  # STS-B, whose label is a similarity from 0 to 5
        return not self.label_names

    @property
    def problem_type(self) -> str:  # transformers' name, which its pipelines read
        return "regression" if self.is_regression else "single_label_classification"

    @property
    def num_labels(self) -> int:
        return len(self.label_names) or 1

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.text_columns, "label", "idx")

    @property
    def validation_splits(self) -> tuple[str, ...]:
        """Return the official validation splits; two for MNLI, matched first."""
        return tuple(split for split in self.rows if split != "train")

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Return the keys of one evaluation over all validation splits."""
        prefixes = map(metric_prefix, self.validation_splits)
        return tuple(prefix + metric for prefix in prefixes for metric in self.metrics)


def metric_prefix(split: str) -> str:
    """Return a split's metric prefix: ``matched_`` for ``validation_matched``, others none."""
    _, _, suffix = split.partition("_")
    return f"{suffix}_" if suffix in ("matched", "mismatched") else ""


def score(task: Task, metrics: Mapping[str, float]) -> float:
    """Return the paper's number for one evaluation, in percentage points.

    Matthews correlation for CoLA, Pearson correlation for STS-B, the mean of accuracy and F1 for
    QQP, the mean of matched and mismatched accuracy for MNLI, accuracy for the others (MRPC too).
    """
    return 100.0 * sum(metrics[name] for name in task.score_metrics) / len(task.score_metrics)


_ENTAILMENT = ("entailment", "not_entailment")
_SENTENCES = ("sentence1", "sentence2")
_TASKS = (
    Task(
        "cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation",),
        {"train": 8551, "validation": 1043},
    ),
    Task(
        "sst2", ("sentence",), ("negative", "positive"), ("accuracy",),
        {"train": 67349, "validation": 872},
    ),
    Task(
        "mrpc", _SENTENCES, ("not_equivalent", "equivalent"), ("accuracy", "f1"),
        {"train": 3668, "validation": 408},
    ),
    Task(
        "qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1"),
        {"train": 363846, "validation": 40430}, score_metrics=("accuracy", "f1"),
    ),
    Task("stsb", _SENTENCES, (), ("pearson", "spearman"), {"train": 5749, "validation": 1500}),
    Task(
        "mnli", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"),
        ("accuracy",),
        {"train": 392702, "validation_matched": 9815, "validation_mismatched": 9832},
        score_metrics=("matched_accuracy", "mismatched_accuracy"),
    ),
    Task(
        "qnli", ("question", "sentence"), _ENTAILMENT, ("accuracy",),
        {"train": 104743, "validation": 5463},
    ),
    Task("rte", _SENTENCES, _ENTAILMENT, ("accuracy",), {"train": 2490, "validation": 277}),
)  # fmt: skip
TASKS = {task.name: task for task in _TASKS}

# What the GLUE server scores: file and row count of each test split. MNLI's model predicts AX too.
TEST_SPLITS: dict[str, dict[str, tuple[str, int]]] = {
    "cola": {"test": ("CoLA.tsv", 1063)},
    "sst2": {"test": ("SST-2.tsv", 1821)},
    "mrpc": {"test": ("MRPC.tsv", 1725)},
    "qqp": {"test": ("QQP.tsv", 390965)},
    "stsb": {"test": ("STS-B.tsv", 1379)},
    "mnli": {
        "test_matched": ("MNLI-m.tsv", 9796), "test_mismatched": ("MNLI-mm.tsv", 9847),
        "ax": ("AX.tsv", 1104),
    },
    "qnli": {"test": ("QNLI.tsv", 5463)},
    "rte": {"test": ("RTE.tsv", 3000)},
}  # fmt: skip
