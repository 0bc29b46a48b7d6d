"""An encoder that was a classifier before, and what a saved run says of its task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
    set_seed,
)

from lora2.config.load import resolve
from lora2.embedded import encoder_path
from lora2.glue.tasks import TASKS
from lora2.run.model import BackboneError, load_backbone, load_run
from tests.conftest import TINY

ENCODERS = ("embedded", "embedded-roberta")


def classifier(folder: Path, encoder: str, value: float, **config) -> Path:
    """Save the embedded encoder with a head of constant weights, as fine-tuning leaves one."""
    path = encoder_path(encoder)
    model = AutoModelForSequenceClassification.from_pretrained(path, **config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith(f"{model.base_model_prefix}."):
                parameter.fill_(value)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(path).save_pretrained(folder)
    return folder


def load(path: Path | None, encoder: str, task: str = "rte", seed: int = 3):
    config = resolve([*TINY, f"backbone={encoder}", f"task={task}", "method=full"]).config
    set_seed(seed)
    backbone = replace(config.backbone, path=None if path is None else str(path))
    return load_backbone(backbone, TASKS[task], None)[1]


def head(model) -> dict[str, torch.Tensor]:
    encoder = f"{model.base_model_prefix}."
    return {n: p.detach() for n, p in model.named_parameters() if not n.startswith(encoder)}


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("labels", [2, 3])
def test_the_head_is_drawn_from_the_seed_whatever_the_checkpoint_had(tmp_path, encoder, labels):
    paths = [
        classifier(tmp_path / str(value), encoder, value, num_labels=labels) for value in (0.5, 0.7)
    ]
    one, two, other = (
        load(paths[0], encoder),
        load(paths[1], encoder),
        load(paths[0], encoder, seed=4),
    )
    weights = [n for n in head(one) if n.endswith("weight")]
    assert (
        head(one)[
            "classifier.weight" if encoder == "embedded" else "classifier.out_proj.weight"
        ].shape[0]
        == 2
    )
    for name in weights:
        assert torch.equal(head(one)[name], head(two)[name])
        assert not torch.equal(head(one)[name], head(other)[name])
        assert head(one)[name].std() > 0
    inside = [n for n, _ in one.named_parameters() if n not in head(one)]
    plain = dict(load(None, encoder).named_parameters())
    assert inside and all(torch.equal(dict(one.named_parameters())[n], plain[n]) for n in inside)
    assert "was a classifier before" in one.marks[0] and load(None, encoder).marks == ()


def test_labels_and_problem_type_are_the_tasks(tmp_path):
    path = classifier(
        tmp_path / "x", "embedded", 0.5, problem_type="multi_label_classification",
        id2label={0: "toxic", 1: "rude", 2: "fine"}, label2id={"toxic": 0, "rude": 1, "fine": 2},
    )  # fmt: skip
    model = load(path, "embedded", "mnli")
    assert list(model.config.id2label.values()) == ["entailment", "neutral", "contradiction"]
    assert model.config.problem_type is None
    assert load(path, "embedded", "stsb").config.num_labels == 1


def test_a_run_on_a_classifier_is_marked_and_is_the_plain_encoders(do_run, tmp_path):
    path = classifier(tmp_path / "x", "embedded", 0.5, num_labels=2)
    row = pd.read_csv(do_run("task=rte", "method=lora", f"backbone.path={path}") / "metrics.csv")
    assert row["data_marks"][0].endswith("its head was replaced by a new one")


def test_a_folder_with_an_adapter_is_no_encoder(tmp_path):
    path = classifier(tmp_path / "x", "embedded", 0.5)
    (path / "adapter_config.json").write_text("{}")
    with pytest.raises(BackboneError, match="holds an adapter"):
        load(path, "embedded")


@pytest.mark.parametrize("method", ["lora2", "bitfit"])
def test_a_saved_run_names_its_labels_and_stsb_answers_in_its_own_unit(do_run, method):
    folder = do_run("task=stsb", f"method={method}", "train.learning_rate=1e-2")
    tokenizer, model = load_run(folder)
    pair = {"text": "the man was in a house", "text_pair": "a man is in the house"}
    with torch.no_grad():
        raw = model(**tokenizer(**pair, return_tensors="pt")).logits.item()
    answer = pipeline("text-classification", model=model, tokenizer=tokenizer)(pair)
    answer = answer[0] if isinstance(answer, list) else answer
    assert answer["label"] == "similarity" and answer["score"] == pytest.approx(raw, abs=1e-5)
    assert AutoConfig.from_pretrained(folder / "adapter").problem_type == "regression"
