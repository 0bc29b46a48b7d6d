"""Out of memory: smaller parts of the same batch, said on the row; the sweep goes on."""

from __future__ import annotations

from functools import wraps
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import DebertaV2ForSequenceClassification as Encoder

from lora2.config.load import resolve
from lora2.config.schema import RunConfig
from lora2.records.run_folder import run_dir, status
from lora2.run.device import OutOfMemory
from lora2.run.run import run
from lora2.sweep import worker
from lora2.sweep.worker import Order
from tests.faults import crash
from tests.run.test_run import weights


def config_of(folder: Path, *words: str) -> RunConfig:
    words = (*crash.TINY, "method=lora", *words)
    return resolve([*words, f"results.dir={folder}"]).config


@pytest.fixture
def holds(monkeypatch):
    """Return a function: how many rows the device holds, after so many passes in training."""
    forward = Encoder.forward

    def limit(training: int, evaluation: int = 1000, after: int = 0) -> list[tuple[bool, int]]:
        seen: list[tuple[bool, int]] = []

        @wraps(forward)  # the Trainer looks for labels among the names of the arguments
        def limited(self, input_ids=None, **kwargs):
            seen.append((self.training, len(input_ids)))
            holds = training if self.training else evaluation
            if len(input_ids) > holds and sum(kind for kind, _ in seen) > after:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            return forward(self, input_ids, **kwargs)

        monkeypatch.setattr(Encoder, "forward", limited)
        return seen

    return limit


def row_of(folder: Path) -> pd.Series:
    return pd.read_csv(folder / "metrics.csv").iloc[0]


def test_the_same_batch_is_made_of_smaller_parts_and_the_row_says_so(tmp_path, holds):
    typed = run(config_of(tmp_path / "typed", "train.micro_batch_size=2"), progress=False)
    seen = holds(training=3)
    found = run(config_of(tmp_path / "found"), progress=False)
    row = row_of(found)
    assert row["micro_batch_size"] == 2 and row["batch_size"] == 8 and row["steps"] == 8
    assert row["notes"] == "out of memory at micro-batch 8, 4"
    assert {n for training, n in seen if training} == {8, 4, 2}
    left, right = weights(typed), weights(found)
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert row["score_best"] == row_of(typed)["score_best"]
    # It is the run that was asked for: found again, and not another one in a table.
    assert found.name == run_dir(config_of(tmp_path / "found")).name


def test_an_evaluation_that_does_not_fit_is_made_of_smaller_parts(tmp_path, holds):
    words = (
        "data.train_rows=116",
        "data.holdout=96",
        "train.eval_batch_size=64",
        "train.micro_batch_size=8",
        "train.max_steps=4",
    )
    seen = holds(training=8, evaluation=40)
    found = run(config_of(tmp_path, *words), progress=False)
    assert row_of(found)["notes"] == "out of memory at micro-batch 8"
    assert max(n for training, n in seen if not training and n <= 40) == 32


def test_smaller_parts_go_on_from_the_last_checkpoint(tmp_path, holds):
    seen = holds(training=4, after=4)  # the fifth step, after the checkpoint of the fourth
    row = row_of(run(config_of(tmp_path), progress=False))
    assert row["steps"] == 8 and row["micro_batch_size"] == 4
    trained = [n for training, n in seen if training]
    fitted = trained[:4] + [n for n in trained[4:] if n <= 4]
    assert sum(fitted) == 20 + 20 + 16  # 8 steps of epochs of 20 rows, none of them twice


def test_one_row_that_does_not_fit_fails_with_what_to_do_and_the_sweep_goes_on(tmp_path, holds):
    holds(training=0)
    config = config_of(tmp_path)
    with pytest.raises(OutOfMemory, match=r"out of memory with 1 examples .*train.max_seq_length"):
        run(config, progress=False)
    assert status(run_dir(config)) == "failed"
    assert "smaller encoder or a larger device" in row_of(run_dir(config))["error"]
    one = worker.carry_out(Order(config), worker.train, worker.record_death)
    holds(training=8)
    other = worker.carry_out(
        Order(config_of(tmp_path, "seed=2")), worker.train, worker.record_death
    )
    assert (one.state, other.state) == ("failed", "finished")
    assert one.message.startswith("OutOfMemory: out of memory with 1 examples")


def test_another_runtime_error_is_no_want_of_memory(tmp_path, monkeypatch):
    tries = []

    def broken(self, *args, **kwargs):
        tries.append(None)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Encoder, "forward", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        run(config_of(tmp_path), progress=False)
    assert len(tries) == 1
