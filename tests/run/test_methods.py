"""Every method: what it moves, that it reloads, that it merges, how it is counted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel

from lora2.config.load import resolve
from lora2.config.parse import CONFIGS, options
from lora2.config.schema import RunConfig
from lora2.glue.data import load_task
from lora2.glue.tasks import TASKS
from lora2.run.methods import prepare
from lora2.run.model import (
    count_trained,
    encoder_config,
    in_head,
    load_run,
    random_encoder,
    read_config,
)
from lora2.study.spec import load_study
from lora2.sweep.table import jobs, load_profile, load_table, narrow
from lora2.tuners.lora2.layer import Lora2Linear
from tests.conftest import TINY

YAMLS = sorted(CONFIGS.rglob("*.y*ml"))
METHODS = {
    "full": (),
    "bitfit": (),
    "lora": (),
    "adalora": ("method.init_r=4", "method.target_r=2"),
    "sora": ("method.xi=0.02",),
    "lora2": ("method.k=2", "method.init_weights=null", "method.init_std=0.3"),
    "lora_xs": ("method.r=4",),
    "vera": ("method.args.r=16",),
}
MARKS = {  # what a trained parameter's name holds outside the head
    "full": ("",),
    "bitfit": ("bias",),
    "lora": ("lora_A", "lora_B"),
    "adalora": ("lora_A", "lora_B", "lora_E"),
    "sora": ("sora_A", "sora_B", "sora_gate"),
    "lora2": ("lora2_u", "lora2_v", "lora2_lambda", "lora2_U", "lora2_V"),
    "lora_xs": ("loraxs_R",),
    "vera": ("vera_lambda",),
}


class Trained(NamedTuple):
    """A short run of a method: its folder, and the parameters as they were at its start."""

    method: str
    folder: Path
    start: dict[str, torch.Tensor]
    trainable: set[str]


@pytest.fixture(scope="module", params=METHODS, name="case")
def trained(request, do_run):
    method, start, trainable = request.param, {}, set[str]()

    def recording(*args):
        model, driver = prepare(*args)
        for name, parameter in model.named_parameters():
            start[name] = parameter.detach().clone()
            trainable.update([name] * parameter.requires_grad)
        return model, driver

    words = (f"method={method}", *METHODS[method], "train.learning_rate=5e-3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora2.run.run.prepare", recording)
        folder = do_run("task=mrpc", *words)
    return Trained(method, folder, start, trainable)


def predict(tokenizer, model) -> np.ndarray:
    """Return outputs, (n, num_labels), on the held-out rows of the embedded MRPC."""
    frame = load_task("mrpc", "embedded", train_rows=88, holdout=40).validation["holdout"]
    batch = tokenizer(
        frame["sentence1"].tolist(), frame["sentence2"].tolist(), return_tensors="pt",
        padding=True, truncation="longest_first", max_length=64,
    )  # fmt: skip
    with torch.no_grad():
        return model(**batch).logits.numpy()


def test_reloaded_model_predicts_what_the_run_recorded(case):
    folder = case.folder
    outputs = predict(*load_run(folder))
    recorded = pd.read_parquet(folder / "predictions.parquet")["last"].to_numpy()
    assert (outputs.argmax(1) == recorded).mean() > 0.995  # a tie may fall otherwise when padded


def test_merging_changes_no_prediction(case):
    if case.method in ("full", "bitfit"):
        pytest.skip("nothing to merge")
    if case.method == "vera":
        pytest.skip("PEFT's VeRA cannot merge beside a head in modules_to_save")
    tokenizer, model = load_run(case.folder)
    assert isinstance(model, PeftModel)
    before = predict(tokenizer, model)
    after = predict(tokenizer, model.merge_and_unload())
    np.testing.assert_allclose(after, before, atol=2e-5)


def test_exactly_the_intended_parameters_moved(case):
    """All that were to be trained, the head's four among them, and nothing else."""
    head_modules = read_config(case.folder).backbone.head_modules
    head = {name for name in case.trainable if in_head(name, head_modules)}
    own = case.trainable - head
    marks = MARKS[case.method]
    assert all(any(mark in name for mark in marks) for name in own)
    assert all(any(mark in name for name in own) for mark in marks)
    assert len(head) == 4  # pooler and classifier, weight and bias each
    _, model = load_run(case.folder)
    end = dict(model.named_parameters())
    assert end.keys() == case.start.keys()
    moved = {name for name in end if not torch.equal(end[name], case.start[name])}
    # A matrix of which nothing is kept has singular values of zero again, as at the start.
    pruned = {name for name in end if "lora2_lambda" in name and not end[name].any()}
    assert moved == case.trainable - pruned
    assert len(pruned) < 12


def test_the_counts_are_of_what_was_trained(case):
    row = pd.read_csv(case.folder / "metrics.csv").iloc[0]
    sizes = {name: case.start[name].numel() for name in case.trainable}
    assert row["params_head"] == 64 * 64 + 64 + 2 * 64 + 2
    assert row["params_adapter"] == sum(sizes.values()) - row["params_head"]
    assert row["params_adapter"] >= row["params_kept"] > 0
    assert row["params_encoder"] > 100_000


def meta_counts(name: str, *words: str):
    """Counts of a method on an encoder's shape, built without memory for its weights."""
    return meta_built(resolve(["task=rte", f"backbone={name}", *words]).config)


def meta_built(run: RunConfig, layers: int | None = None):
    """Build a run's model without memory; its encoder's first ``layers``, which are all alike."""
    shape = encoder_config(run.backbone)
    shape.num_hidden_layers = min(layers or shape.num_hidden_layers, shape.num_hidden_layers)
    with torch.device("meta"):
        base = random_encoder(shape, TASKS[run.task].num_labels)
        _, encoder = count_trained(base, run.backbone)
        model, _ = prepare(base, run, 3900)
    head, adapter = count_trained(model, run.backbone)
    return run, SimpleNamespace(adapter=adapter, head=head, encoder=encoder), base


def runs_of(path: Path) -> list[RunConfig]:
    """Return runs of a file: all rows of a table or a study, else one run."""
    words = {"task": "rte", "method": "lora2", "backbone": "embedded"}
    if path.parent.name == "table":
        plan = load_table(path.stem)
        cells = jobs(narrow(plan, plan.tasks[:1], None), load_profile("embedded"), [1])
        return [cell.resolved.config for cell in cells]
    if path.parent.name == "study":
        study = load_study(path.stem)
        parts = reversed(study.parts)  # the first part of each row: the shortest
        cells = {row: part for part in parts for row in part.rows if row in study.rates}
        return [
            study.candidate(part, row, study.rates[row]).resolved.config
            for row, part in cells.items()
        ]
    if path.parent.name == "profile":
        profile = load_profile(path.stem)
        encoders = [name for name in profile.encoders.values() if name is not None]
        lines = [(f"backbone={encoder}", *profile.overrides) for encoder in encoders]
        return [resolve(["task=rte", "method=lora2", *line]).config for line in lines]
    words |= {path.parent.name: path.stem} if path.parent.name in words else {}
    return [resolve([f"{group}={name}" for group, name in words.items()]).config]


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_yaml_composes_validates_and_builds_its_model(path):
    runs = runs_of(path)
    assert runs
    for run in runs:
        _, counts, base = meta_built(run, layers=2)
        assert counts.adapter > 0 and counts.head > 0 and counts.encoder > 100_000
        assert base.num_labels == TASKS[run.task].num_labels


@pytest.mark.parametrize("method", [*METHODS, "peft"])
@pytest.mark.parametrize("name", options("backbone"))
def test_every_method_builds_on_every_encoder(name, method):
    run = resolve(["task=rte", f"backbone={name}", f"method={method}"]).config
    _, counts, _ = meta_built(run, layers=2)
    assert counts.adapter > 0 and counts.head > 0 and counts.encoder > 100_000


@pytest.mark.parametrize(
    ("name", "words", "adapter", "head"),
    [
        ("deberta-v3-base", ("method=lora2", "method.k=1"), 167_616, 592_130),
        ("deberta-v3-base", ("method=lora2", "method.k=8"), 1_336_896, 592_130),
        (
            "deberta-v3-base",
            ("method=lora2", "method.k=1", "method.target_modules=[query,key]"),
            37_440,
            592_130,
        ),
        (
            "deberta-v3-base",
            ("method=lora2", "method.k=1", "method.target_modules=[query,key,value]"),
            56_160,
            592_130,
        ),
        ("deberta-v3-base", ("method=lora", "method.r=8"), 1_327_104, 592_130),
        ("deberta-v3-base", ("method=lora", "method.r=1"), 165_888, 592_130),
        ("deberta-v3-base", ("method=bitfit",), 102_912, 592_130),
        ("deberta-v3-base", ("method=full",), 183_831_552, 592_130),
        ("roberta-large", ("method=lora2", "method.k=1"), 445_824, 1_051_650),
    ],
)
def test_counts_of_the_paper(name, words, adapter, head):
    _, counts, _ = meta_counts(name, *words)
    assert (counts.adapter, counts.head) == (adapter, head)
    # RoBERTa's classifier has no pooler: 355,359,744 less 1024 * 1024 + 1024.
    encoder = {"deberta-v3-base": 183_831_552, "roberta-large": 354_310_144}
    assert counts.encoder == encoder[name]


def test_k8_is_the_paper_s_share_of_the_model():
    _, counts, _ = meta_counts("deberta-v3-base", "method=lora2")
    whole = counts.encoder + counts.head
    assert whole == 184_423_682
    assert round(100 * counts.adapter / whole, 2) == 0.72


def test_what_survives_is_counted_with_true_sizes():
    run = resolve([*TINY, "task=rte", "method=lora2", "method.k=2"]).config
    model, tuner = prepare(random_encoder(encoder_config(run.backbone)), run, 6)
    masks = [m.lora2_mask["default"] for m in model.modules() if isinstance(m, Lora2Linear)]
    assert len(masks) == 12
    for mask in masks:
        mask[3:] = False
    widths = 2 * (4 * (64 + 64) + 2 * (64 + 384))  # of two layers with six matrices
    assert tuner.kept_parameters() == 2 * widths + 12 * 3 * 5
    for mask in masks:
        mask.fill_(False)
    assert tuner.kept_parameters() == 0
