"""What the device lacks is refused before anything is loaded; what is used is on the row."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pandas as pd
import pytest
import torch
from transformers import AutoModel, BertConfig

from lora2.config.load import resolve
from lora2.config.problems import ConfigError
from lora2.glue.tasks import TASKS
from lora2.records.run_folder import run_dir
from lora2.run import device
from lora2.run.model import load_backbone
from lora2.run.run import record_failure, run
from tests.conftest import TINY

WORDS = ("task=rte", "method=lora2")


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("train.precision=bf16", "train.precision = 'bf16': bf16 needs a GPU"),
        ("train.precision=fp16", "train.precision = 'fp16': fp16 needs a GPU"),
        ("train.tf32=true", "train.tf32 = True: TF32 needs an NVIDIA GPU"),
    ],
)
def test_what_a_cpu_lacks_is_refused_before_loading(no_gpu, monkeypatch, tmp_path, word, says):
    monkeypatch.setattr("lora2.run.run.load_data", lambda *_: pytest.fail("loaded"))
    config = resolve([*TINY, *WORDS, word, f"results.dir={tmp_path}"]).config
    with pytest.raises(ConfigError) as caught:
        run(config, progress=False)
    assert says in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_finished_run_is_found_on_any_device(no_gpu, tmp_path):
    config = resolve([*TINY, *WORDS, "train.tf32=true", f"results.dir={tmp_path}"]).config
    run_dir(config).mkdir(parents=True)
    (run_dir(config) / "status").write_text("finished\n")
    assert run(config, progress=False) == run_dir(config)


def test_the_commit_on_a_row_is_that_of_the_code_that_ran(monkeypatch):
    device.code_version.cache_clear()
    before = device.provenance()["commit"]
    monkeypatch.setattr(device, "_git", lambda *_: "a commit made during the training")
    assert before and device.provenance()["commit"] == before


def test_tf32_is_on_the_row(tmp_path):
    config = resolve([*TINY, *WORDS, "train.tf32=true", f"results.dir={tmp_path}"]).config
    record_failure(config, "failed", OSError("away"))
    assert bool(pd.read_csv(run_dir(config) / "metrics.csv")["tf32"][0])


@pytest.mark.parametrize(("has", "refused"), [(True, 0), (False, 1)])
def test_bf16_on_a_processor_needs_its_instructions(no_gpu, monkeypatch, has, refused):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has})
    config = resolve([*TINY, *WORDS, "train.precision=bf16"]).config
    assert len(list(device._device_problems(config.train))) == refused


def test_bf16_by_emulation_does_not_count(monkeypatch):
    asked = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **kw: asked.update(kw) or False)
    monkeypatch.setattr(device, "device_name", lambda: "Tesla V100")
    config = resolve([*TINY, *WORDS, "train.precision=bf16"]).config
    with pytest.raises(ConfigError, match="Tesla V100"):
        device.check_device(config)
    assert asked == {"including_emulation": False}


@pytest.mark.parametrize(("launched", "refused"), [("bf16", True), ("no", False), (None, False)])
def test_a_launch_in_another_precision_is_refused(monkeypatch, launched, refused):
    if launched is None:
        monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    else:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    config = resolve([*TINY, *WORDS]).config
    with pytest.raises(ConfigError, match="--mixed_precision=no") if refused else nullcontext():
        device.check_device(config)


def test_one_run_with_tf32_leaves_nothing_to_the_next():
    config = resolve([*TINY, *WORDS]).config
    before = torch.get_float32_matmul_precision()
    try:
        found = []
        for wanted in (True, None, True, False):
            device.use_matmul_precision(replace(config, train=replace(config.train, tf32=wanted)))
            found.append(torch.get_float32_matmul_precision())
        assert found == ["high", "highest", "high", "highest"]
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("backbone", "kind", "says"),
    [
        ("embedded", "sdpa", "eager or null"),
        ("embedded", "flash", "'eager' or 'sdpa'"),
    ],
)
def test_attention_that_the_encoder_does_not_have_is_refused(backbone, kind, says):
    with pytest.raises(ConfigError, match=rf"backbone\.attention = '{kind}': .*{says}"):
        resolve([*WORDS, f"backbone={backbone}", f"backbone.attention={kind}"])


def test_roberta_attends_by_sdpa_and_the_row_says_so(do_run):
    words = ("task=rte", "method=bitfit", "backbone=embedded-roberta", "train.max_steps=1")
    row = pd.read_csv(do_run(*words, "train.eval_steps=1") / "metrics.csv").iloc[0]
    assert (row["attention"], row["tf32"]) == ("sdpa", False)


def test_bert_attends_by_sdpa():
    model = AutoModel.from_config(BertConfig(hidden_size=8, num_attention_heads=2, vocab_size=9))
    assert model.config._attn_implementation == "sdpa"


def test_sdpa_gives_the_outputs_and_gradients_of_eager_attention():
    found = {}
    for kind in ("eager", "sdpa"):
        words = [*WORDS, "backbone=embedded-roberta", f"backbone.attention={kind}"]
        config = resolve(words).config
        torch.manual_seed(0)
        _, model = load_backbone(config.backbone, TASKS["rte"], 0.0)
        model = model.double().train()
        ids = torch.randint(5, 300, (4, 20), generator=torch.Generator().manual_seed(1))
        mask = torch.ones_like(ids)
        mask[1, 9:] = 0
        logits = model(input_ids=ids, attention_mask=mask).logits
        logits.square().sum().backward()
        found[kind] = [logits.detach(), *(p.grad for p in model.parameters())]
        assert model.config._attn_implementation == kind
    for eager, sdpa in zip(found["eager"], found["sdpa"], strict=True):
        torch.testing.assert_close(sdpa, eager, rtol=1e-9, atol=1e-11)
