from __future__ import annotations

import csv

import pytest
import torch

from lora2.bench.lengths import QUANTILES, TABLE, draw, known_lengths, padded_batch
from lora2.config.load import resolve
from lora2.glue.tasks import TASKS


def test_the_table_holds_every_task_cut_where_training_cuts():
    known = known_lengths()
    assert list(known) == list(TASKS)
    with open(TABLE, newline="") as file:
        rows = {row["task"]: row for row in csv.DictReader(file)}
    for name, tokens in known.items():
        words = [f"task={name}", "method=lora2", "backbone=deberta-v3-base"]
        longest = int(rows[name]["max_seq_length"])
        assert longest == resolve(words).config.train.max_seq_length
        assert list(tokens) == sorted(tokens)
        assert tokens[0] >= 3 and tokens[-1] <= longest
        assert 0 < int(rows[name]["rows"]) <= TASKS[name].rows["train"]


def test_drawn_lengths_have_the_quantiles():
    one = known_lengths()["rte"]
    drawn = draw(one, 20_000, torch.Generator().manual_seed(0)).double()
    for quantile in (5, 25, 50, 75, 95):
        expected = one[QUANTILES.index(quantile)]
        found = torch.quantile(drawn, quantile / 100).item()
        assert found == pytest.approx(expected, rel=0.06, abs=1), quantile
    assert drawn.min() >= one[0] and drawn.max() <= one[-1]
    assert set(draw((7.0,) * len(QUANTILES), 50, torch.Generator()).tolist()) == {7}


def test_a_batch_is_padded_to_its_longest():
    batch = padded_batch(torch.tensor([2, 5, 3]), 50, 3, torch.Generator().manual_seed(0))
    assert batch["input_ids"].shape == (3, 5)
    assert batch["attention_mask"].sum(1).tolist() == [2, 5, 3]
    assert ((batch["input_ids"] >= 5) == (batch["attention_mask"] == 1)).all()
    assert batch["labels"].tolist() == [0, 1, 2]
    labels = padded_batch(torch.tensor([2, 5]), 50, 1, torch.Generator())["labels"]
    assert labels.is_floating_point() and ((labels >= 0) & (labels <= 5)).all()
