from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from lora2.experiment import timetable
from lora2.experiment.profile import load_profile
from lora2.experiment.shapes import longest, random_encoder
from lora2.experiment.tableplan import jobs, load_table, narrow
from lora2.experiment.timing import Measured, Stepper, interleave, random_batch
from lora2.glue.tasks import get_task


def cells(rows: list[str], task: str = "rte", profile: str = "embedded", **train):
    words = [f"train.{key}={value}" for key, value in train.items()]
    plan = narrow(load_table("2"), [task], rows)
    return jobs(plan, load_profile(profile), [1], words)


@pytest.mark.parametrize(
    ("profile", "table", "parameters"),
    [("paper", "1", 183_831_552), ("paper", "roberta-large", 355_359_744 - 1024 * 1024 - 1024)],
)
def test_encoder_shapes_are_the_published_ones(profile, table, parameters):
    plan = narrow(load_table(table), ["rte"], ["full"])
    backbone = jobs(plan, load_profile(profile), None)[0].resolved.config.backbone
    with torch.device("meta"):
        model = random_encoder(backbone, get_task("rte"))
    # RoBERTa's own count includes a pooler, which its classifier does without.
    assert sum(p.numel() for p in model.base_model.parameters()) == parameters


def test_batches_are_full_and_no_longer_than_the_encoder_reads():
    one = cells(["lora-r8"], task="stsb", max_seq_length=16, batch_size=6)[0].resolved.config
    batch = random_batch(one, 100, 16)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (6, 16)
    assert batch["attention_mask"].all() and batch["input_ids"].min() >= 5
    assert batch["input_ids"].max() < 100
    assert batch["labels"].dtype == torch.float32 and batch["labels"].max() <= 5
    mnli = cells(["lora-r8"], task="mnli")[0].resolved.config
    assert set(random_batch(mnli, 100, 8)["labels"].tolist()) == {0, 1, 2}

    class Roberta:
        model_type, max_position_embeddings = "roberta", 514

    assert longest(Roberta, 600) == 512 and longest(Roberta, 320) == 320


def test_a_step_trains_and_drives_the_allocator():
    one = cells(["lora2-k8"], max_seq_length=8, batch_size=2)[0].resolved
    stepper = Stepper(one.config, 400)
    before = {n: p.detach().clone() for n, p in stepper.model.named_parameters()}
    seconds = [stepper.step() for _ in range(3)]
    assert min(seconds) > 0 and stepper.tokens == 8
    changed = {n for n, p in stepper.model.named_parameters() if not torch.equal(p, before[n])}
    frozen = {n for n, p in stepper.model.named_parameters() if not p.requires_grad}
    assert changed and not changed & frozen
    # With no initial phase the budget shrinks from the first masking step on.
    assert int(stepper.driver.training_state()["step"]) == 3
    found = stepper.measured(seconds)
    assert found.trainable == sum(p.numel() for p in stepper.model.parameters() if p.requires_grad)


def test_methods_take_turns_and_warm_up_is_not_counted():
    order: list[str] = []

    class Fake:
        def __init__(self, name: str):
            self.name, self.count = name, 0

        def step(self) -> float:
            order.append(self.name)
            self.count += 1
            return float(self.count)

        def measured(self, seconds: list[float]) -> Measured:
            return Measured(seconds, 1, 1, 1.0)

    found = interleave([lambda: Fake("a"), lambda: Fake("b")], rounds=3, warm_up=2)
    assert order == ["a", "b"] * 5
    assert [one.seconds for one in found] == [[3.0, 4.0, 5.0]] * 2
    assert found[0].median == 4.0


def test_table_2_gives_ratios_beside_the_papers(monkeypatch, tmp_path):
    plan = narrow(load_table("2"), ["rte", "qnli"], ["adalora-r8", "lora2-k8", "full"])
    profile = load_profile("embedded")
    seconds = {"adalora": 0.2, "lora2": 0.3, "full": 0.1}

    def fake(builders, rounds):
        return [Measured([s] * rounds, 64, 1, 1.0) for s in seconds.values()]

    monkeypatch.setattr(timetable, "interleave", fake)
    frame = timetable.measure(plan, jobs(plan, profile, [1]), 3, tell=lambda _: None)
    frame["device"] = "some GPU"
    row = frame.set_index(["row", "task"])
    assert row.loc[("lora2-k8", "rte"), "ratio"] == pytest.approx(1.5)
    assert row.loc[("lora2-k8", "rte"), "paper_ratio"] == pytest.approx(1.65 / 1.44)
    assert math.isnan(row.loc[("lora2-k8", "qnli"), "paper_ratio"])
    assert math.isnan(row.loc[("adalora-r8", "rte"), "ratio"])
    paths = timetable.write(plan, frame, profile, tmp_path)
    assert [path.name for path in paths] == ["table2.csv", "table2.md"]
    assert pd.read_csv(paths[0])["seconds"].tolist() == [0.2, 0.3, 0.1] * 2
    text = paths[1].read_text()
    assert "not the paper's encoder" in text
    assert "| LoRA² k=8 | 300.0 (1.50) | 300.0 (1.50) |" in text
    assert "| (paper, to AdaLoRA r=8) | – | 1.15 |" in text
    assert "| AdaLoRA r=8 | 200.0 | 200.0 |" in text
    assert "QNLI" in text
    frame["device"] = "cpu x86_64 2 threads"  # whose seconds tell a reader nothing
    assert "| LoRA² k=8 | 1.50 | 1.50 |" in timetable.render(plan, frame, profile)
