"""The typed schema of a run: every key, its type, its range and its unit; and a run's name.

Values live in configs/; this file declares only the keys. All classes refuse unknown keys and
convert nothing silently (``"8"`` is not an integer).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lora2.glue.tasks import REPOSITORY

Count = Annotated[int, Field(ge=1)]
Steps = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Target = Literal["query", "key", "value", "attention_output", "intermediate", "output"]
Targets = Annotated[list[Target], Field(min_length=1)]
# Far above any real run, so that a slip in typing is refused.
Epochs = Annotated[float, Field(gt=0, le=10_000, allow_inf_nan=False)]
RunSteps = Annotated[int, Field(ge=1, le=100_000_000)]
# Part of a folder's name, so it cannot lead out of it.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Module = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*$")]
# What transformers calls the head of an encoder's sequence classifier.
Head = Literal["pooler", "classifier", "pre_classifier", "score"]
Revision = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+([./][A-Za-z0-9_-]+)*$")]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
TaskName = Literal["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte"]

checked = dataclass(config=ConfigDict(extra="forbid", strict=True), frozen=True, kw_only=True)


@checked
class Train:
    """Length, rates and batches; a step is an optimiser step, a batch the effective batch."""

    learning_rate: Positive
    head_learning_rate: Positive | None  # None: the head learns at learning_rate
    num_train_epochs: Epochs
    max_steps: RunSteps | None  # None: by epochs
    batch_size: Count  # examples per optimiser step over all devices
    micro_batch_size: Count | None  # examples per device and pass; None: no accumulation
    eval_batch_size: Count
    max_seq_length: Annotated[int, Field(ge=8)]  # tokens, special ones included
    warmup_steps: Steps
    warmup_ratio: Fraction  # of all steps; used when warmup_steps is 0
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"]
    weight_decay: NonNegative
    max_grad_norm: Positive | None  # None: no clipping
    cls_dropout: Fraction | None  # None: the encoder's own
    eval_steps: Count
    save_steps: Count | None  # taken at the next evaluation; None: no checkpoint
    precision: Literal["fp32", "bf16", "fp16"]
    tf32: bool | None = None  # fp32 matrix products on tensor cores, 10 bits of mantissa
    group_by_length: bool | None = None  # training batches of rows of similar length
    report_to: list[str] | None = None  # trackers that transformers knows; names no run


@checked
class Data:
    source: Literal["hub", "folder", "embedded"]
    dir: str | None
    train: Literal["train", "train_subset"]  # the second, a folder's, only when asked for
    validation: Literal["validation", "validation_unofficial"] | None  # None: the official one(s)
    train_rows: Count | None  # a seeded subset of this many rows; None: all
    holdout: Count | None = None  # rows of train to be scored on in place of the validation split


@checked
class Backbone:
    """The frozen encoder and what its modules are called."""

    name: Name
    path: str | None  # hub name or folder; None: shipped with the package
    revision: Revision | None
    random_init: bool  # configuration and tokenizer only, weights drawn from the seed
    profile: Literal["paper", "small", "embedded"]
    head_modules: Annotated[list[Head], Field(min_length=1)]
    targets: dict[Target, Module]  # our name of a matrix -> its path inside one layer
    attention: Literal["eager", "sdpa"] | None = None  # None: the encoder's default
    warm_start: str | None = None  # a finished run's folder, whose encoder is started from
    overlap: list[TaskName] | None = None  # tasks whose data, or data like it, it was trained on


@checked
class Results:
    dir: Annotated[str, Field(min_length=1)]  # the run folder is written under it


@checked
class Plain:
    """A method without keys: full fine-tuning, or biases only."""

    name: Literal["full", "bitfit"]


@checked
class Adapter:
    """The keys of every method that adds matrices."""

    name: Name
    lora_alpha: Positive
    lora_dropout: Fraction
    target_modules: Targets


@checked
class Pruned(Adapter):
    """The keys of methods that prune ranks to a budget; tinit, tfinal, deltaT: optimiser steps."""

    tinit: Steps
    tfinal: Steps
    deltaT: Count
    beta1: Fraction
    beta2: Fraction
    orth_reg_weight: NonNegative


@checked
class Lora(Adapter):
    r: Count


@checked
class LoraXs(Lora):
    init_std: Positive


@checked
class Adalora(Pruned):
    init_r: Count
    target_r: Count


@checked
class Sora(Lora):
    sparse_lambda: NonNegative
    xi: NonNegative  # threshold of the first stage
    xi_max: NonNegative | None  # threshold of the last stage; None: xi throughout
    xi_stages: Count
    gate_lr: Positive | None  # None: train.learning_rate
    threshold: Literal["soft", "published"]


@checked
class Lora2(Pruned):
    r: Count
    k: Count
    init_std: Positive  # of the published start
    target_r: Count | None  # None: no pruning
    orthogonality: Literal["uv", "UV", "uv+UV", "PQ", "uv+UV+PQ", "none"]
    orth_squared: bool
    importance: Literal["factored", "full"]
    init_weights: Literal["orthogonal"] | None = None  # None: the published start
    lambda_lr_ratio: Positive | Literal["auto"] | None = None  # rate of lambda; None: the others'


@checked
class Peft:
    """Any PEFT method by its type; args go to its config class and are checked by it."""

    name: Name
    type: str
    target_modules: Targets | None  # None: the type's own default
    args: dict[str, Any]


METHODS: dict[str, type] = {
    "full": Plain, "bitfit": Plain, "lora": Lora, "adalora": Adalora, "sora": Sora,
    "lora2": Lora2, "lora_xs": LoraXs,
}  # fmt: skip
Method = Plain | Lora | Adalora | Sora | Lora2 | LoraXs | Peft


@checked
class Identity:
    """The top-level keys."""

    task: TaskName
    protocol: Literal["public", "equal"]
    ranks: Literal["paper", "public"]
    seed: Seed


@checked
class RunConfig(Identity):
    """One run, resolved: nothing is left to be decided."""

    method: Method
    backbone: Backbone
    train: Train
    data: Data
    results: Results

    def hub_needs(self) -> list[tuple[str, str]]:
        """Return the hub repositories of the run, as ``lora2.hub.check_available`` takes them."""
        encoder = [(self.backbone.path, "model")] if self.backbone.path is not None else []
        return encoder + [(REPOSITORY, "dataset")] * (self.data.source == "hub")


SECTIONS: dict[str, type] = {
    "backbone": Backbone, "train": Train, "data": Data, "results": Results,
}  # fmt: skip


def build(tree: dict[str, Any]) -> RunConfig:
    """Return the typed configuration of a tree that was checked before (a run's config.yaml)."""
    method_kind = METHODS.get(tree["method"]["name"], Peft)
    sections = {section: kind(**tree[section]) for section, kind in SECTIONS.items()}
    return RunConfig(**{**tree, **sections, "method": method_kind(**tree["method"])})


def as_tree(config: RunConfig) -> dict[str, Any]:
    return dataclasses.asdict(config)


def config_hash(config: RunConfig) -> str:
    """Return ten hex digits that name a run: sha256 of its configuration.

    Where results go is left out, and so is what is None: a new optional key renames no run that
    does not use it. A warm start counts by its run's name.
    """
    tree = {key: value for key, value in as_tree(config).items() if key != "results"}
    tree["train"]["report_to"] = None
    if tree["backbone"]["warm_start"] is not None:
        tree["backbone"]["warm_start"] = Path(tree["backbone"]["warm_start"]).name
    text = json.dumps(_without_none(tree), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def run_name(config: RunConfig) -> str:
    """Return the run folder's name: task, method, seed and hash."""
    return f"{config.task}-{config.method.name}-s{config.seed}-{config_hash(config)}"


def _without_none(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_none(value) for key, value in tree.items() if value is not None}
    return tree
