"""Every method of the bench takes whole training steps, in turn, from the same weights."""

from __future__ import annotations

import time

import pandas as pd
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from lora2.bench import step
from lora2.bench.cases import METHODS, Case
from lora2.bench.counters import counting
from lora2.bench.step import (
    LENGTHS,
    QUANTILES,
    draw_lengths,
    held_mib,
    interleave,
    measure,
    needs,
    own_clock,
    padded_batch,
    quartiles,
    ratio,
)
from lora2.config.load import resolve
from lora2.glue.tasks import TASKS
from lora2.run.model import random_encoder, shaped


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    config = shaped("roberta-large", layers=2)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    return random_encoder(config)


@pytest.fixture(scope="module")
def batch():
    return padded_batch(torch.tensor([7, 4]), 200, 2, torch.Generator().manual_seed(0))


CASE = Case("roberta-large", 2, 2, 7, "fp32", "cpu")


def build(base, row):
    return step.build(base, CASE.run(row), fused=True)


def test_methods_take_turns_and_warm_up_is_not_counted(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(step, "own_clock", lambda device: lambda: clock[0])

    def action(name, cost):
        def act(number):
            order.append((name, number))
            clock[0] += cost + number

        return act

    actions = {"a": action("a", 10), "b": action("b", 20)}
    found = interleave(actions, "cpu", rounds=3, warm_up=2)
    assert order == [(name, number) for number in range(5) for name in "ab"]
    assert found == {"a": [12, 13, 14], "b": [22, 23, 24]}
    assert quartiles(found["a"]) == (12.5, 13, 13.5) and quartiles([2.0]) == (2, 2, 2)


@pytest.mark.parametrize("visible", [False, True])
def test_the_clock_is_that_of_the_device_measured_on(visible, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: visible)
    assert own_clock("cpu") is time.process_time  # without waiting for other programs
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert own_clock("cpu") is time.perf_counter  # process time would add the threads up
    assert own_clock("cuda") is time.perf_counter  # the host only waits for it


def test_methods_are_timed_by_the_clock_of_their_device(base, batch, monkeypatch):
    asked = []
    monkeypatch.setattr(step, "own_clock", lambda device: asked.append(device) or time.perf_counter)
    measure({"lora-r8": (CASE.run("lora-r8"), 9)}, [batch], 1, 0, base, count=False)
    assert asked == ["cpu"]


def test_a_ratio_compares_times_of_the_same_round():
    # A machine that slows down threefold in the middle: the medians alone would say 1.5.
    assert ratio([2.0, 6.0, 6.0], [1.0, 3.0, 4.0]) == 2.0
    with pytest.raises(ValueError):
        ratio([1.0], [1.0, 2.0])


@pytest.mark.parametrize("row", METHODS)
def test_a_step_trains_what_the_method_trains_and_leaves_the_first_weights(base, batch, row):
    shared = {name: p.detach().clone() for name, p in base.named_parameters()}
    one = build(base, row)
    before = {n: p.detach().clone() for n, p in one.model.named_parameters()}
    for _ in range(2):
        one.step(batch)
    changed = {n for n, p in one.model.named_parameters() if not torch.equal(p, before[n])}
    trained = {n for n, p in one.model.named_parameters() if p.requires_grad}
    assert changed and changed <= trained
    assert all(p.grad is None for p in one.model.parameters())
    assert all(torch.equal(p, shared[n]) for n, p in base.named_parameters())
    if row == "full":
        assert trained == set(shared)
    elif row == "bitfit":
        assert all(n.endswith("bias") or n.startswith("classifier") for n in trained)
    else:
        adapted = [m for m in one.model.modules() if isinstance(m, BaseTunerLayer)]
        assert len(adapted) == 2 * (4 if row == "lora-xs" else 6)
        assert any(
            n.endswith("classifier.modules_to_save.default.out_proj.weight") for n in trained
        )


def test_allocators_mask_from_the_first_step_and_penalties_are_in_the_loss(base, batch):
    ada, ours = build(base, "adalora-r8"), build(base, "lora2-k8")
    for one in (ada, ours):
        for _ in range(3):
            one.step(batch)
        kept = one.driver.kept_ranks().values()
        assert sum(map(sum, kept)) < sum(map(len, kept))
    for one in (ada, ours):
        inside = one.model(**batch).loss
        one.model.eval()
        outside = one.model(**batch).loss
        assert inside > outside + 0.1  # nothing is dropped out: it is the penalty


def test_trained_and_held_sizes(base, batch):
    full, ours = build(base, "full"), build(base, "lora2-k8")
    numbers = sum(p.numel() for p in base.parameters())
    buffers = sum(b.untyped_storage().nbytes() for b in base.buffers())
    assert held_mib(full) * 2**20 == 4 * numbers + buffers
    full.step(batch)
    ours.step(batch)
    # AdamW: two moments and a step counter for each parameter.
    held = 12 * numbers + buffers + 4 * len(list(base.parameters()))
    needed = needs(full, batch)
    assert needed["trainable"] == numbers and needed["held_memory_mb"] * 2**20 == held
    assert 16 * numbers < needed["peak_memory_mb"] * 2**20 < 16 * numbers + 8e6
    assert needs(ours, batch)["peak_memory_mb"] < 0.6 * needed["peak_memory_mb"]


def test_counts_of_a_step(base, batch):
    ada, ours, lora = (build(base, row) for row in ("adalora-r8", "lora2-k8", "lora-r8"))
    counts = {}
    for name, one in (("ada", ada), ("ours", ours), ("lora", lora)):
        with counting() as counts[name]:
            one.step(batch)
    assert len(counts["lora"].kernels) < len(counts["ours"].kernels) < len(counts["ada"].kernels)
    # One list for each of 12 matrices, and the threshold.
    assert len(counts["ada"].syncs) - len(counts["lora"].syncs) == 13
    assert counts["ours"].syncs == counts["lora"].syncs


def test_all_step_on_the_same_batch_in_a_round(base, batch, monkeypatch):
    seen = []
    monkeypatch.setattr(
        step.Stepper, "step", lambda self, own: seen.append((id(self), len(own["labels"])))
    )
    runs = {row: (CASE.run(row), 9) for row in ("lora-r8", "lora2-k1")}
    other = {key: value[:1] for key, value in batch.items()}
    measure(runs, [batch, other], 2, 1, base, count=False)
    first, second = dict.fromkeys(stepper for stepper, _ in seen)
    assert seen == [(one, size) for size in (2, 1, 2) for one in (first, second)]


def test_shapes_can_be_made_shallower():
    assert shaped("deberta-v3-base", layers=3).num_hidden_layers == 3
    assert shaped("deberta-v3-base").num_hidden_layers == 12


def test_the_table_holds_every_task_cut_where_training_cuts():
    table = pd.read_csv(LENGTHS, index_col="task")
    assert list(table.index) == list(TASKS)
    for name, row in table.iterrows():
        words = [f"task={name}", "method=lora2", "backbone=deberta-v3-base"]
        assert row["max_seq_length"] == resolve(words).config.train.max_seq_length
        tokens = list(row[[f"p{quantile}" for quantile in QUANTILES]])
        assert tokens == sorted(tokens)
        assert tokens[0] >= 3 and tokens[-1] <= row["max_seq_length"]
        assert 0 < row["rows"] <= TASKS[name].rows["train"]


def test_drawn_lengths_have_the_quantiles():
    row = pd.read_csv(LENGTHS, index_col="task").loc["rte"]
    drawn = draw_lengths("rte", 20_000, torch.Generator().manual_seed(0)).double()
    for quantile in (5, 25, 50, 75, 95):
        found = torch.quantile(drawn, quantile / 100).item()
        assert found == pytest.approx(row[f"p{quantile}"], rel=0.06, abs=1), quantile
    assert drawn.min() >= row["p0"] and drawn.max() <= row["p100"]


def test_a_batch_is_padded_to_its_longest():
    batch = padded_batch(torch.tensor([2, 5, 3]), 50, 3, torch.Generator().manual_seed(0))
    assert batch["input_ids"].shape == (3, 5)
    assert batch["attention_mask"].sum(1).tolist() == [2, 5, 3]
    assert ((batch["input_ids"] >= 5) == (batch["attention_mask"] == 1)).all()
    assert batch["labels"].tolist() == [0, 1, 2]
    labels = padded_batch(torch.tensor([2, 5]), 50, 1, torch.Generator())["labels"]
    assert labels.is_floating_point() and ((labels >= 0) & (labels <= 5)).all()
