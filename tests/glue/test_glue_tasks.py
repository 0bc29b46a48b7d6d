from __future__ import annotations

import subprocess
import sys

import pytest

import lora2.glue.tasks as tasks_module
from lora2.glue.tasks import TASKS, score

EXAMPLES = [
    ("cola", {"matthews_correlation": 0.7}, 70.0),
    ("sst2", {"accuracy": 0.95}, 95.0),
    ("mrpc", {"accuracy": 0.9, "f1": 0.5}, 90.0),
    ("qqp", {"accuracy": 0.92, "f1": 0.88}, 90.0),
    ("stsb", {"pearson": 0.91, "spearman": 0.2}, 91.0),
    ("mnli", {"matched_accuracy": 0.9, "mismatched_accuracy": 0.91}, 90.5),
    ("qnli", {"accuracy": 0.93}, 93.0),
    ("rte", {"accuracy": 0.85}, 85.0),
]


@pytest.mark.parametrize(("name", "metrics", "expected"), EXAMPLES)
def test_score_follows_the_paper(name, metrics, expected):
    assert score(TASKS[name], metrics) == pytest.approx(expected)
    assert set(metrics) == set(TASKS[name].metric_names)


def test_examples_cover_all_tasks():
    assert [name for name, _, _ in EXAMPLES] == list(TASKS)


def test_shapes_of_tasks():
    assert {name: task.num_labels for name, task in TASKS.items()} == {
        "cola": 2, "sst2": 2, "mrpc": 2, "qqp": 2, "stsb": 1, "mnli": 3, "qnli": 2, "rte": 2,
    }  # fmt: skip
    assert TASKS["mnli"].validation_splits == ("validation_matched", "validation_mismatched")
    assert TASKS["qnli"].columns == ("question", "sentence", "label", "idx")
    assert [name for name, task in TASKS.items() if task.is_regression] == ["stsb"]
    assert len({hash(task) for task in TASKS.values()}) == 8


LOAD_ALONE = """
import importlib.util, sys, time
start = time.perf_counter()
spec = importlib.util.spec_from_file_location("tasks", sys.argv[1])
sys.modules["tasks"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
heavy = {"torch", "numpy", "pandas", "datasets", "transformers", "pyarrow"} & set(sys.modules)
print(time.perf_counter() - start, *heavy)
"""


def test_module_is_light():
    command = [sys.executable, "-c", LOAD_ALONE, tasks_module.__file__]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(3)]
    outputs = [run.stdout.split() for run in runs]
    assert [output[1:] for output in outputs] == [[]] * 3
    assert min(float(output[0]) for output in outputs) < 0.1
