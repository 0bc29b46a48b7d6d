from __future__ import annotations

import evaluate
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from lora2.glue import metrics
from lora2.glue.metrics import (
    NonFinitePredictionsError,
    compute,
    compute_splits,
    decide,
)
from lora2.glue.tasks import TASKS

CLASSIFICATION = [name for name in TASKS if name != "stsb"]


@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("name", CLASSIFICATION)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 60))
@settings(max_examples=10, deadline=None)
def test_classification_equals_scikit_learn(name, seed, rows):
    task = TASKS[name]
    rng = np.random.default_rng(seed)
    guesses, labels = rng.integers(task.num_labels, size=(2, rows))
    expected = {"accuracy": accuracy_score(labels, guesses)}
    if task.num_labels == 2:
        expected["f1"] = f1_score(labels, guesses, zero_division=0.0)
        expected["matthews_correlation"] = matthews_corrcoef(labels, guesses)
    assert compute(name, guesses, labels) == {key: expected[key] for key in task.metrics}


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(3, 60))
@settings(max_examples=15, deadline=None)
def test_correlations_equal_scipy(seed, rows):
    rng = np.random.default_rng(seed)
    labels = rng.uniform(0, 5, rows).astype(np.float32)
    guesses = (labels + rng.normal(size=rows)).astype(np.float32)
    result = compute("stsb", guesses, labels)
    assert list(result) == ["pearson", "spearman"]
    exact = labels.astype(float), guesses.astype(float)
    assert result["pearson"] == pytest.approx(pearsonr(*exact).statistic, abs=1e-12)
    assert result["spearman"] == pytest.approx(spearmanr(*exact).statistic, abs=1e-12)


def test_golden_values():
    labels, guesses = np.array([1, 1, 1, 0, 0, 0, 1, 0]), np.array([1, 1, 0, 0, 0, 1, 1, 0])
    assert compute("mrpc", guesses, labels) == {"accuracy": 0.75, "f1": 0.75}
    assert compute("cola", guesses, labels) == {"matthews_correlation": 0.5}


def test_no_positive_prediction_gives_zero_f1():
    result = compute("qqp", np.zeros(4, dtype=int), np.array([0, 1, 0, 1]))
    assert result == {"accuracy": 0.5, "f1": 0.0}


@pytest.mark.parametrize("constant", ["predictions", "labels"])
def test_constant_similarities_give_zero_and_say_so(constant):
    varied, flat = np.array([0.0, 1.0, 4.0]), np.full(3, 2.5)
    guesses, labels = (flat, varied) if constant == "predictions" else (varied, flat)
    with pytest.warns(RuntimeWarning, match="constant"):
        assert compute("stsb", guesses, labels) == {"pearson": 0.0, "spearman": 0.0}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_diverged_outputs_are_refused(bad):
    with pytest.raises(NonFinitePredictionsError, match=r"stsb: outputs for 1 of 3 rows.*diverged"):
        decide(TASKS["stsb"], np.array([[1.0], [bad], [2.0]]))
    outputs = np.zeros((5, 2))
    outputs[3] = bad
    with pytest.raises(NonFinitePredictionsError, match="rte: outputs for 1 of 5 rows"):
        decide(TASKS["rte"], outputs)


def test_decide():
    outputs = np.array([[0.1, 0.9, -1.0], [3.0, 2.0, 1.0]])
    assert decide(TASKS["mnli"], outputs).tolist() == [1, 0]
    assert decide(TASKS["stsb"], outputs[:, :1]).tolist() == [0.1, 3.0]
    assert decide(TASKS["stsb"], outputs[:, 0]).tolist() == [0.1, 3.0]


def test_mnli_splits_are_scored_apart():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=50)
    guesses = np.where(rng.random(50) < 0.7, labels, (labels + 1) % 3)
    lengths = {"validation_matched": 20, "validation_mismatched": 30}
    result = compute_splits(TASKS["mnli"], guesses, labels, lengths)
    assert result == {
        "matched_accuracy": accuracy_score(labels[:20], guesses[:20]),
        "mismatched_accuracy": accuracy_score(labels[20:], guesses[20:]),
    }
    assert result["matched_accuracy"] != result["mismatched_accuracy"]


@pytest.mark.parametrize("split", ["validation", "validation_unofficial"])
def test_one_split_has_plain_names(split):
    result = compute_splits(TASKS["qqp"], np.array([1, 1]), np.array([1, 0]), {split: 2})
    assert result == {"accuracy": 0.5, "f1": pytest.approx(2 / 3)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_evaluate_loads_the_file_and_agrees(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    metric = evaluate.load(metrics.__file__, "mrpc", cache_dir=str(tmp_path), keep_in_memory=True)
    guesses, labels = [0, 1, 1, 0], [0, 1, 0, 0]
    assert metric.compute(predictions=guesses, references=labels) == compute(
        "mrpc", np.array(guesses), np.array(labels)
    )


def test_nothing_is_written_for_metrics(tmp_path, monkeypatch):
    obstacle = tmp_path / "file"  # no folder can be made below a file, whoever the user is
    obstacle.write_text("")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(obstacle / "modules"))
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(obstacle / "metrics"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("a network call"))
    metrics._metric.cache_clear()
    assert compute("rte", np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])) == {"accuracy": 0.75}
    assert list((tmp_path / "scratch").iterdir()) == []
