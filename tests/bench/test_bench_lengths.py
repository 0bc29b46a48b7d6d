from __future__ import annotations

import dataclasses

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lora2.bench.lengths import QUANTILES, Lengths, draw, known_lengths, padded_batch
from lora2.bench.measure_lengths import main, measure, measured_lengths
from lora2.embedded import encoder_path
from lora2.experiment.config import resolve
from lora2.glue.tasks import TASKS


def test_the_table_holds_every_task_cut_where_training_cuts():
    known = known_lengths()
    assert list(known) == list(TASKS)
    for name, one in known.items():
        words = [f"task={name}", "method=lora2", "backbone=deberta-v3-base"]
        assert one.max_seq_length == resolve(words).config.train.max_seq_length
        assert list(one.tokens) == sorted(one.tokens)
        assert one.tokens[0] >= 3 and one.tokens[-1] <= one.max_seq_length
        assert 0 < one.rows <= TASKS[name].rows["train"]


def test_drawn_lengths_have_the_quantiles():
    one = known_lengths()["rte"]
    drawn = draw(one, 20_000, torch.Generator().manual_seed(0)).double()
    for quantile in (5, 25, 50, 75, 95):
        expected = one.tokens[QUANTILES.index(quantile)]
        found = torch.quantile(drawn, quantile / 100).item()
        assert found == pytest.approx(expected, rel=0.06, abs=1), quantile
    assert drawn.min() >= one.tokens[0] and drawn.max() <= one.tokens[-1]
    constant = dataclasses.replace(one, tokens=(7.0,) * len(QUANTILES))
    assert set(draw(constant, 50, torch.Generator()).tolist()) == {7}


def test_a_batch_is_padded_to_its_longest():
    batch = padded_batch(torch.tensor([2, 5, 3]), 50, 3, torch.Generator().manual_seed(0))
    assert batch["input_ids"].shape == (3, 5)
    assert batch["attention_mask"].sum(1).tolist() == [2, 5, 3]
    assert ((batch["input_ids"] >= 5) == (batch["attention_mask"] == 1)).all()
    assert batch["labels"].tolist() == [0, 1, 2]
    labels = padded_batch(torch.tensor([2, 5]), 50, 1, torch.Generator())["labels"]
    assert labels.is_floating_point() and ((labels >= 0) & (labels <= 5)).all()


def test_lengths_are_measured_on_a_folder_of_glue(tmp_path, capsys):
    tokenizer = str(encoder_path("embedded"))
    for name, task in TASKS.items():
        words = [" ".join(["the"] * n) for n in (1, 2, 3, 200)]
        table = pa.table({column: words for column in task.text_columns})
        (tmp_path / name).mkdir()
        file = "train_subset" if name == "qqp" else "train"
        pq.write_table(table, tmp_path / name / f"{file}.parquet")
    found = measured_lengths(tmp_path, tokenizer, ["cola", "qqp"])
    assert list(found) == ["cola", "qqp"]
    assert (found["cola"].rows, found["cola"].tokens[0], found["cola"].tokens[-1]) == (4, 3, 64)
    # Two sentences and a separator more; a pair is cut as a whole.
    assert (found["qqp"].tokens[0], found["qqp"].tokens[-1]) == (5, 320)
    with pytest.raises(Exception, match="no folder"):
        measure(tmp_path / "cola", None, "rte", 64)
    assert main([]) == 2 and "GLUE_DIR" in capsys.readouterr().err


def test_the_script_writes_what_the_bench_reads(tmp_path):
    for name, task in TASKS.items():
        (tmp_path / name).mkdir()
        table = pa.table({column: ["the", "the the"] for column in task.text_columns})
        pq.write_table(table, tmp_path / name / "train.parquet")
    out = tmp_path / "lengths.csv"
    assert main([str(tmp_path), str(encoder_path("embedded")), str(out)]) == 0
    known = known_lengths(out)
    assert list(known) == list(TASKS) and isinstance(known["cola"], Lengths)
    assert known["cola"].tokens[0] == 3 and known["cola"].tokens[-1] == 4
    assert known["cola"].max_seq_length == 64
