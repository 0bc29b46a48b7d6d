"""A loss that is not a number ends its run as diverged, with the step; the sweep goes on."""

from __future__ import annotations

from functools import wraps

import pandas as pd
import pytest
import torch
from transformers import DebertaV2ForSequenceClassification as Encoder

from lora2.config.load import resolve
from lora2.records import store
from lora2.records.run_folder import run_dir
from lora2.sweep.worker import Order, carry_out, record_death, train
from tests.faults import crash


def config_of(folder, *words):
    words = (*crash.TINY, "method=lora", "data.train_rows=88", "train.eval_steps=4", *words)
    return resolve([*words, "train.save_steps=4", f"results.dir={folder}"]).config


@pytest.fixture
def bad_at(monkeypatch):
    """Return a function: the training pass number ``at`` yields NaN, as loss or as logits."""
    forward = Encoder.forward

    def install(at: int, what: str) -> None:
        passes = []

        @wraps(forward)  # the Trainer looks for labels among the names of the arguments
        def broken(self, *args, **kwargs):
            output = forward(self, *args, **kwargs)
            passes.extend([None] * self.training)
            bad = len(passes) >= at and (self.training if what == "loss" else True)
            if bad:
                output[what] = output[what] * torch.nan
            return output

        monkeypatch.setattr(Encoder, "forward", broken)

    return install


@pytest.mark.parametrize(
    ("what", "at", "said"),
    [
        ("loss", 6, "the training loss is nan at step 6: try a lower train.learning_rate"),
        ("logits", 3, "evaluation after step 4"),
    ],
)
def test_the_step_is_named_and_the_next_run_is_done(tmp_path, bad_at, monkeypatch, what, at, said):
    config = config_of(tmp_path)
    bad_at(at, what)
    outcome = carry_out(Order(config), train, record_death)
    assert outcome.state == "diverged" and said in outcome.message
    row = store.read_run(run_dir(config)).iloc[0]
    assert row["status"] == "diverged" and said in row["error"]
    assert not list(tmp_path.glob("work/*/checkpoint-*"))  # it would only diverge again
    monkeypatch.undo()
    other = carry_out(Order(config_of(tmp_path, "seed=2")), train, record_death)
    assert other.state == "finished"
    runs = store.collect(tmp_path)
    assert sorted(runs["status"]) == ["diverged", "finished"]
    assert pd.isna(runs.set_index("status").loc["diverged", "score_best"])
