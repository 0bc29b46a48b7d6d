"""Every method: what it moves, that it reloads, that it merges, how it is counted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from lora2.experiment.backbone import load_backbone
from lora2.experiment.compose import options
from lora2.experiment.config import resolve
from lora2.experiment.counting import count_encoder, count_kept, count_start
from lora2.experiment.methods import in_head, prepare
from lora2.experiment.reload import load_run, read_config
from lora2.experiment.shapes import encoder_config
from lora2.glue.data import load_task
from lora2.glue.tasks import TASKS
from lora2.tuners.lora2.layer import Lora2Linear

METHODS = {
    "full": (),
    "bitfit": (),
    "lora": (),
    "adalora": ("method.init_r=4", "method.target_r=2"),
    "sora": ("method.xi=0.02",),
    "lora2": ("method.k=2", "method.init_std=0.3"),
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


@pytest.fixture(scope="module", params=METHODS, name="case")
def trained(request, do_run):
    method = request.param
    words = (f"method={method}", *METHODS[method], "train.learning_rate=5e-3")
    return method, do_run("task=mrpc", *words)


def predict(tokenizer, model) -> np.ndarray:
    """(n, num_labels) outputs on the validation rows of the embedded MRPC."""
    frame = load_task("mrpc", "embedded").validation["validation"]
    batch = tokenizer(
        frame["sentence1"].tolist(), frame["sentence2"].tolist(), return_tensors="pt",
        padding=True, truncation="longest_first", max_length=64,
    )  # fmt: skip
    with torch.no_grad():
        return model(**batch).logits.numpy()


def test_reloaded_model_predicts_what_the_run_recorded(case):
    _, folder = case
    outputs = predict(*load_run(folder))
    recorded = pd.read_parquet(folder / "predictions.parquet")["last"].to_numpy()
    assert (outputs.argmax(1) == recorded).mean() > 0.995  # a tie may fall otherwise when padded


def test_merging_changes_no_prediction(case):
    method, folder = case
    if method in ("full", "bitfit"):
        pytest.skip("nothing to merge")
    if method == "vera":
        pytest.skip("PEFT's VeRA cannot merge beside a head in modules_to_save")
    tokenizer, model = load_run(folder)
    assert isinstance(model, PeftModel)
    before = predict(tokenizer, model)
    after = predict(tokenizer, model.merge_and_unload())
    np.testing.assert_allclose(after, before, atol=2e-5)


def test_exactly_the_intended_parameters_moved(case):
    method, folder = case
    config = read_config(folder)
    _, base = load_backbone(config.backbone, TASKS["mrpc"], None)
    frozen = dict(base.named_parameters())
    _, model = load_run(folder)
    moved, still = set(), set()
    for name, parameter in model.named_parameters():
        original = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if original in frozen and not in_head(original, config.backbone.head_modules):
            same = torch.equal(parameter, frozen[original])
            (still if same else moved).add(original)
    if method == "full":
        assert len(moved) > 0.9 * len(moved | still)  # an embedding of an unused row may rest
    elif method == "bitfit":
        assert moved and all(name.endswith("bias") for name in moved)
    else:
        assert not moved and still


def test_trainable_parameters_are_the_method_s(case):
    method, folder = case
    config = read_config(folder)
    _, base = load_backbone(config.backbone, TASKS["mrpc"], None)
    model, _ = prepare(base, config, 6)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    outside = [name for name in trainable if not in_head(name, config.backbone.head_modules)]
    assert outside and all(any(mark in name for mark in MARKS[method]) for name in outside)
    head = [name for name in trainable if in_head(name, config.backbone.head_modules)]
    assert len(head) == 4  # pooler and classifier, weight and bias each


def test_the_head_moved_and_so_did_the_adapter(case):
    _, folder = case
    row = pd.read_csv(folder / "metrics.csv").iloc[0]
    assert row["params_head"] == 64 * 64 + 64 + 2 * 64 + 2
    assert row["params_adapter"] >= row["params_kept"] > 0
    assert row["params_encoder"] > 100_000


def meta_counts(name: str, *words: str):
    """Counts of a method on an encoder's shape, built without memory for its weights."""
    run = resolve(["task=rte", f"backbone={name}", *words]).config
    with torch.device("meta"):
        base = AutoModelForSequenceClassification.from_config(encoder_config(run.backbone))
        encoder = count_encoder(base, run.backbone)
        model, _ = prepare(base, run, 3900)
    return run, count_start(model, run.backbone, encoder), base


@pytest.mark.parametrize("method", [*METHODS, "peft"])
@pytest.mark.parametrize("name", options("backbone"))
def test_every_method_builds_on_every_encoder(name, method):
    _, counts, _ = meta_counts(name, f"method={method}")
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
    run, counts, base = meta_counts("deberta-v3-base", "method=lora2", "method.k=8")
    adapted = [n for n, module in base.named_modules() if isinstance(module, Lora2Linear)]
    kept = {name: [True] * 3 + [False] * 5 for name in adapted}
    assert len(kept) == 72
    wide = 12 * (4 * 1536 + 2 * 3840)
    assert count_kept(counts.adapter, run.method, kept, base) == 8 * wide + 72 * 3 * 17
    nothing = {name: [False] * 8 for name in kept}
    assert count_kept(counts.adapter, run.method, nothing, base) == 0
