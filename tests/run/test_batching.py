"""Batches of similar length: rows, order and outputs stay what they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch.utils.data import BatchSampler, DataLoader
from transformers import EvalPrediction

from lora2.config.load import resolve
from lora2.config.schema import config_hash
from lora2.glue.data import tokenize
from lora2.glue.tasks import TASKS
from lora2.run import trainer as batching
from lora2.run.model import load_backbone, load_run
from lora2.run.recorder import Recorder
from lora2.run.run import load_data
from lora2.run.trainer import LengthGrouped, collator, lengths, longest_first
from tests.conftest import TINY
from tests.run.test_run import assert_same_run

SOME = 4  # every fourth row: each is a forward pass of its own
GROUPED = ("train.group_by_length=true",)


def outputs(model: torch.nn.Module, batch) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits  # (batch, labels)


def alone(folder: Path, words: tuple[str, ...]) -> np.ndarray:
    """Predictions of a finished run's model on some validation rows one by one, never padded."""
    config = resolve([*TINY, *words]).config
    tokenizer, model = load_run(folder)
    (frame,) = load_data(config).validation.values()
    rows = tokenize(frame[::SOME], TASKS[config.task], tokenizer, config.train.max_seq_length)
    rows = rows.remove_columns("labels").with_format("torch")
    return np.array([float(outputs(model, {k: v[None] for k, v in r.items()})) for r in rows])


def test_predictions_come_back_in_the_order_of_the_rows(do_run):
    words = (
        "task=stsb",
        "method=lora2",
        "method.init_weights=null",
        "method.init_std=0.3",
        *GROUPED,
    )
    folder = do_run(*words)
    frame = pd.read_parquet(folder / "predictions.parquet")
    rows = load_data(resolve([*TINY, *words]).config).validation["holdout"]
    assert list(frame["idx"]) == list(rows["idx"]) and list(frame["label"]) == list(rows["label"])
    np.testing.assert_allclose(frame["last"][::SOME], alone(folder, words), rtol=0, atol=2e-6)
    assert frame["last"].nunique() > len(frame) / 2  # a constant would be in any order


def test_metrics_see_outputs_and_labels_as_if_nothing_was_sorted():
    texts = [[7] * n for n in (3, 9, 1, 9, 5)]
    rows = Dataset.from_dict({"input_ids": texts, "labels": [0, 1, 2, 3, 4]})
    seen = []
    ordered, metrics = longest_first(rows, lambda e: seen.append(e) or {})
    assert [len(ids) for ids in ordered["input_ids"]] == [9, 9, 5, 3, 1]
    labels = np.array(ordered["labels"])
    for outputs in (labels * 1.0, (labels * 1.0, (labels * 10.0,))):  # with hidden states
        metrics(EvalPrediction(predictions=outputs, label_ids=labels))
        assert list(seen[-1].label_ids) == [0, 1, 2, 3, 4]
        assert list(seen[-1].predictions) == [0, 1, 2, 3, 4]


def test_every_row_once_and_batches_of_similar_length():
    rng = np.random.default_rng(0)
    sizes = rng.integers(4, 60, 1000)
    batches = list(BatchSampler(LengthGrouped(sizes, 16, seed=3), 16, drop_last=False))
    assert sorted(i for batch in batches for i in batch) == list(range(1000))
    spread = np.mean([np.ptp(sizes[batch]) for batch in batches])
    assert spread < 5 < np.ptp(sizes[:16])


def test_order_is_decided_by_seed_and_epoch():
    sizes = np.arange(200) % 23
    orders = []
    for seed, epoch in ((1, 0), (1, 0), (1, 1), (2, 0)):
        sampler = LengthGrouped(sizes, 8, seed)
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        torch.rand(1)
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] and orders[0] != orders[3]


def test_accelerate_draws_another_order_in_each_epoch():
    rows = Dataset.from_dict({"input_ids": [[i] * (1 + i % 5) for i in range(40)]})
    loader = Accelerator(cpu=True).prepare(
        DataLoader(
            rows,
            batch_size=4,
            sampler=LengthGrouped(lengths(rows), 8, seed=1),
            collate_fn=lambda batch: torch.tensor([row["input_ids"][0] for row in batch]),
        )
    )
    orders = []
    for epoch in (0, 1, 1):
        loader.set_epoch(epoch)
        orders.append([int(row) for batch in loader for row in batch])
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert orders[0] != orders[1] == orders[2]


def test_lengths_are_those_of_the_rows():
    texts = [[1] * n for n in (3, 1, 2)]
    rows = Dataset.from_dict({"input_ids": texts})
    assert list(lengths(rows)) == [3, 1, 2]
    assert list(lengths(rows.select([2, 0]))) == [2, 3]


def test_stopped_and_resumed_grouped_run_equals_uninterrupted(do_run, monkeypatch, tmp_path):
    """It goes on from step 6, in the middle of the second epoch of 4 steps."""
    words = ("task=mrpc", "method=lora2", "data.train_rows=72", "train.max_steps=8", *GROUPED)
    words = (*words, "train.save_steps=2", "train.eval_steps=2")
    whole = do_run(*words)

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 7:
            raise OSError("the machine went away")

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "on_step_begin", stop)
        with pytest.raises(OSError, match="went away"):
            do_run(*words, into=tmp_path)
    assert_same_run(whole, do_run(*words, into=tmp_path))


def test_grouping_changes_the_batches_and_the_name_of_the_run(do_run):
    words = ("task=mrpc", "method=lora2", "train.max_steps=3")
    plain, grouped = do_run(*words, "train.group_by_length=null"), do_run(*words, *GROUPED)
    assert plain.name != grouped.name
    losses = [pd.read_csv(folder / "history.csv")["train_loss"][0] for folder in (plain, grouped)]
    assert losses[0] != losses[1]


def test_keys_left_out_leave_the_name_of_the_run():
    config = resolve(["task=rte", "method=lora2"]).config
    assert config.train.group_by_length is config.train.tf32 is config.backbone.attention is None
    assert config_hash(replace(config, train=replace(config.train, tf32=True))) != config_hash(
        config
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_tensor_cores_get_multiples_of_8_tokens_and_the_same_outputs(monkeypatch, precision):
    config = resolve(["task=cola", "method=full", "backbone=embedded"]).config
    tokenizer, model = load_backbone(config.backbone, TASKS["cola"], None)
    model.eval()
    monkeypatch.setattr(batching.torch.cuda, "is_available", lambda: True)
    half = collator(tokenizer, replace(config.train, precision=precision))
    full = collator(tokenizer, config.train)
    rows = tokenize(load_data(config).train[:16], TASKS["cola"], tokenizer, 13)
    padded, plain = half(list(rows)), full(list(rows))
    assert plain["input_ids"].shape[1] % 8 and padded["input_ids"].shape[1] % 8 == 0
    torch.testing.assert_close(outputs(model, padded), outputs(model, plain), rtol=0, atol=2e-6)
