from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from lora2.bench import step
from lora2.bench.step import Measured, batches, build, measure
from lora2.glue.tasks import TASKS
from lora2.run.model import encoder_config, longest, random_encoder
from lora2.sweep.table import jobs, load_profile, load_table, narrow
from lora2.tables import times as timetable
from lora2.tables.render import publish


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
        model = random_encoder(encoder_config(backbone))
    # RoBERTa's own count includes a pooler, which its classifier does without.
    assert sum(p.numel() for p in model.base_model.parameters()) == parameters


def test_batches_are_as_long_as_a_tasks_sentences_and_no_longer_than_the_encoder_reads():
    def lengths(task, **train):
        one = cells(["lora-r8"], task, "paper", batch_size=16, **train)[0].resolved.config
        own = batches(one, 4)
        assert all(batch["input_ids"].shape[0] == 16 for batch in own)
        return [batch["input_ids"].shape[1] for batch in own], own

    cola, (first, *_) = lengths("cola")
    rte, _ = lengths("rte")
    assert max(cola) < 46 < min(rte)  # CoLA's longest sentence has 46 tokens
    assert len(set(rte)) > 1 and max(rte) <= 286
    assert max(lengths("rte", max_seq_length=40)[0]) == 40
    rows = first["attention_mask"].sum(1)
    assert rows.max() == first["input_ids"].shape[1] and rows.min() < rows.max()
    assert ((first["input_ids"] > 0) == (first["attention_mask"] == 1)).all()
    assert set(lengths("mnli")[1][0]["labels"].tolist()) == {0, 1, 2}
    assert lengths("stsb")[1][0]["labels"].dtype == torch.float32

    class Roberta:
        model_type, max_position_embeddings = "roberta", 514

    assert longest(Roberta, 600) == 512 and longest(Roberta, 320) == 320


def test_embedded_batches_are_the_embedded_sentences():
    one = cells(["lora-r8"], "rte", batch_size=4)[0].resolved.config
    first, second = batches(one, 2)
    assert first["input_ids"].shape[0] == second["input_ids"].shape[0] == 4
    assert (first["input_ids"][:, 0] == first["input_ids"][0, 0]).all()  # [CLS]


def test_a_step_is_taken_with_the_runs_attention_and_matrix_products(monkeypatch):
    built = []
    monkeypatch.setattr(
        step, "build", lambda *own, **kind: built.append(build(*own, **kind)) or built[-1]
    )

    def made(*words):
        plan = narrow(load_table("2"), ["rte"], ["lora-r8"])
        words = ["backbone=embedded-roberta", *words]
        config = jobs(plan, load_profile("embedded"), [1], words)[0].resolved.config
        measure({"lora-r8": (config, 10)}, batches(config, 1), 1, 0)
        kind = built[-1].model.config._attn_implementation
        return kind, torch.get_float32_matmul_precision()

    before = torch.get_float32_matmul_precision()
    try:
        assert made("train.tf32=true", "backbone.attention=eager") == ("eager", "high")
        assert made("backbone.attention=sdpa") == ("sdpa", "highest")
        assert made() == ("sdpa", "highest")
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("word", "said"), [("true", "tf32"), ("null", "fp32")])
def test_a_timed_row_says_whether_it_had_tf32(word, said):
    plan, own = narrow(load_table("2"), ["rte"], ["full"]), Measured([1.0], 9.0, 7, 8.0, 3.0)
    found = jobs(plan, load_profile("paper"), [1], [f"train.tf32={word}"])
    (line,) = timetable._lines(plan, "rte", found, {"full": own})
    assert line["precision"] == said


def test_a_step_trains_and_drives_the_allocator():
    one = cells(["lora2-k8"], max_seq_length=8, batch_size=2)[0].resolved
    task = TASKS["rte"]
    base = random_encoder(encoder_config(one.config.backbone), task.num_labels)
    taken = build(base, one.config, 400)
    batch = {key: value.to(taken.device) for key, value in batches(one.config, 1)[0].items()}
    before = {n: p.detach().clone() for n, p in taken.model.named_parameters()}
    for _ in range(3):
        taken.step(batch)
    changed = {n for n, p in taken.model.named_parameters() if not torch.equal(p, before[n])}
    frozen = {n for n, p in taken.model.named_parameters() if not p.requires_grad}
    assert changed and not changed & frozen
    assert int(taken.driver.training_state()["step"]) == 3
    assert not taken.driver.allocator.mask.all()  # with no initial phase it masks at once


def test_runs_are_measured_side_by_side():
    one, other = cells(["lora-r8", "lora2-k8"], max_seq_length=8, batch_size=2)
    runs = {job.row: (job.resolved.config, 400) for job in (one, other)}
    found = measure(runs, batches(one.resolved.config, 2), rounds=3, warm_up=0)
    assert list(found) == ["lora-r8", "lora2-k8"]
    for measured in found.values():
        assert len(measured.seconds) == 3 and min(measured.seconds) > 0
        assert measured.tokens == 8 and measured.peak_memory_mb > 0
    assert found["lora-r8"].trainable < found["lora2-k8"].trainable


def test_table_2_gives_ratios_beside_the_papers(monkeypatch, tmp_path):
    plan = narrow(load_table("2"), ["rte", "qnli"], ["adalora-r8", "lora2-k8", "full"])
    profile = load_profile("embedded")
    seconds = {"adalora": 0.2, "lora2": 0.3, "full": 0.1}

    def fake(runs, batches, rounds, warm_up, count):
        assert not count  # operations and memory are not in the table
        assert list(runs) == ["adalora-r8", "lora2-k8", "full"]
        own = dict(zip(runs, seconds.values(), strict=True))
        return {row: Measured([s] * rounds, 64.0, 1, 1.0, 1.0) for row, s in own.items()}

    monkeypatch.setattr(timetable.step, "measure", fake)
    frame = timetable.measure(plan, jobs(plan, profile, [1]), 3, tell=lambda _: None)
    frame = frame.assign(device="some GPU", dirty=False)
    row = frame.set_index(["row", "task"])
    assert row.loc[("lora2-k8", "rte"), "ratio"] == pytest.approx(1.5)
    assert row.loc[("lora2-k8", "rte"), "paper_ratio"] == pytest.approx(1.65 / 1.44)
    assert math.isnan(row.loc[("lora2-k8", "qnli"), "paper_ratio"])
    assert math.isnan(row.loc[("adalora-r8", "rte"), "ratio"])
    paths = [tmp_path / f"table2.{ending}" for ending in ("csv", "md", "tex")]
    written = publish(tmp_path, "table2", timetable.texts(plan, frame, profile), whole=True)
    assert written.splitlines() == [f"wrote {path}" for path in paths]
    assert pd.read_csv(paths[0])["seconds"].tolist() == [0.2, 0.3, 0.1] * 2
    text = paths[1].read_text()
    assert "not the paper's encoder" in text
    assert "| LoRA² k=8 | 300.0 (1.50) | 300.0 (1.50) |" in text
    assert "| (paper, to AdaLoRA r=8) | – | 1.15 |" in text
    assert "| AdaLoRA r=8 | 200.0 | 200.0 |" in text
    assert "QNLI" in text
    tex = paths[2].read_text()
    assert "not the paper's encoder" in tex and r"300.0 (1.50) & 300.0 (1.50) \\" in tex
    for path in paths[1:]:
        path.unlink()
    kept = paths[0].read_bytes()
    assert timetable.rewrite(plan, profile, tmp_path) == written
    assert paths[0].read_bytes() == kept and paths[1].read_text() == text
    assert paths[2].read_text() == tex
    frame["device"] = "cpu x86_64 2 threads"  # whose seconds tell a reader nothing
    assert "| LoRA² k=8 | 1.50 | 1.50 |" in timetable.texts(plan, frame, profile)[".md"]
    dirty = "Measured with uncommitted changes in the tree."
    assert dirty not in text and "- Tokens per example" in text and "Tokens per example" in tex
    texts = timetable.texts(plan, frame.assign(dirty=True), profile)
    publish(tmp_path, "table2", texts, whole=True)
    timetable.rewrite(plan, profile, tmp_path)
    assert dirty in paths[1].read_text() and dirty in paths[2].read_text()
