"""Load an encoder with a new head, draw one by its shape alone, or reload a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

import lora2
from lora2.config.parse import SHAPES, parse_yaml
from lora2.config.problems import ConfigError, Problem
from lora2.config.schema import Backbone, Peft, RunConfig, build
from lora2.embedded import encoder_path
from lora2.glue.tasks import TASKS, Task
from lora2.hub import offline_reason, ways_out
from lora2.records.run_folder import status

PROBE = "the man was in a house"


class BackboneError(RuntimeError):
    """The encoder is not available; the message says why and what to do."""


def load_backbone(
    backbone: Backbone, task: Task, cls_dropout: float | None
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Load the tokenizer and a float32 sequence classifier with ``task.num_labels`` outputs.

    The head is always new (drawn from torch's generator); ``model.marks`` says so where the
    checkpoint had one. ``cls_dropout`` is the head's dropout, None for the encoder's own. Pickled
    weights are read with ``weights_only``; code from a model repository is never run.
    Raises BackboneError: folder or hub repository not found or unreadable, or no network.
    """
    path = backbone.path or str(encoder_path(backbone.name))
    reason = offline_reason(backbone.path)
    # trust_remote_code: None would ask on the terminal whether to run a folder's code.
    options = {
        "revision": backbone.revision, "local_files_only": reason is not None,
        "trust_remote_code": False,
    }  # fmt: skip
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        config = AutoConfig.from_pretrained(path, **options)
        _check_tokenizer(tokenizer, config)
        set_labels(config, task)
        if cls_dropout is not None:
            deberta = config.model_type.startswith("deberta")
            setattr(config, "cls_dropout" if deberta else "classifier_dropout", cls_dropout)
        kinds = {"dtype": torch.float32, "attn_implementation": backbone.attention}
        if backbone.random_init:
            model = AutoModelForSequenceClassification.from_config(config, **kinds)
            model.marks = ()
        else:
            if (Path(path) / "adapter_config.json").is_file():
                raise ValueError("it holds an adapter, which its encoder would be loaded with")
            model, report = AutoModelForSequenceClassification.from_pretrained(
                path, config=config, output_loading_info=True, ignore_mismatched_sizes=True,
                **kinds, **options,
            )  # fmt: skip
            model.marks = _replace_head(model, report, kinds)
        model.config.architectures = [type(model).__name__]  # as a checkpoint would set it
    # transformers and safetensors raise many unrelated kinds for a missing or broken file.
    except Exception as error:
        why = f"{reason}; {error}" if reason else str(error)
        hint = ways_out([(path, "model")])
        raise BackboneError(f"the encoder {path} could not be loaded: {why}\n{hint}") from error
    return tokenizer, model


def set_labels(config: PreTrainedConfig, task: Task, problem_type: str | None = None) -> None:
    """Replace the labels in an encoder's configuration by the task's.

    Without ``problem_type`` the model takes it from the number of labels and their type.
    """
    names = task.label_names or ("similarity",)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    config.problem_type = problem_type


def _replace_head(
    model: PreTrainedModel, report: Mapping[str, Any], kinds: dict[str, Any]
) -> tuple[str, ...]:
    """Replace a head that came with the encoder by a new one; return the mark that says so."""
    encoder = f"{model.base_model_prefix}."
    if misfits := [n for n, *_ in report["mismatched_keys"] if n.startswith(encoder)]:
        raise ValueError(f"its weights do not fit its config.json: {', '.join(misfits)}")
    head = [name for name, _ in model.named_parameters() if not name.startswith(encoder)]
    if set(head) <= set(report["missing_keys"]):
        return ()
    fresh = AutoModelForSequenceClassification.from_config(model.config, **kinds)
    for name in {name.partition(".")[0] for name in head}:
        setattr(model, name, getattr(fresh, name))
    return ("the encoder was a classifier before; its head was replaced by a new one",)


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Refuse a tokenizer without its files (to it every word is unknown), or of another encoder."""
    tokens = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    if not set(tokens) - {tokenizer.unk_token_id}:
        raise ValueError(f"its tokenizer knows none of the words {PROBE!r}: are its files there?")
    size = max(tokenizer.get_vocab().values()) + 1
    if size > config.vocab_size:
        weights = f"{config.vocab_size:,}: are they of two encoders?"
        raise ValueError(f"its tokenizer has {size:,} tokens and its weights {weights}")


def load_start(config: RunConfig) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Load what a run starts from: its encoder, or that of the run in ``backbone.warm_start``.

    The head is drawn from ``config.seed``. BackboneError as in ``load_backbone``; ConfigError if
    the run of the warm start is not finished, or cannot be started from.
    """
    set_seed(config.seed)
    backbone, task = config.backbone, TASKS[config.task]
    tokenizer, base = load_backbone(backbone, task, config.train.cls_dropout)
    if backbone.warm_start is None:
        return tokenizer, base
    folder = Path(backbone.warm_start)
    try:
        source = read_config(folder).backbone.name
        if source != backbone.name:
            raise ValueError(f"a run on {source}, and this one is on {backbone.name}")
        _, trained = load_run(folder)
        if isinstance(trained, PeftModel):
            trained = trained.merge_and_unload()
    except (ValueError, AttributeError) as error:
        wrong = f"cannot be started from: {error}"
        allowed = "the folder of a finished run of full, bitfit or a method that merges"
        raise ConfigError([Problem("backbone.warm_start", str(folder), allowed, wrong)]) from error
    encoder = trained.base_model.state_dict()
    kept = {name: t for name, t in encoder.items() if not in_head(name, backbone.head_modules)}
    base.base_model.load_state_dict(kept, strict=False)
    base.marks = (*base.marks, f"warm start from {folder.name}")
    set_seed(config.seed)  # as if no other run had been loaded in between
    return tokenizer, base


def in_head(name: str, head_modules: Sequence[str]) -> bool:
    """Tell whether a parameter's dotted name lies in one of the head's modules."""
    return any(part in head_modules for part in name.split("."))


def count_trained(model: nn.Module, backbone: Backbone) -> tuple[int, int]:
    """Count the numbers that are trained: in the head (classifier and pooler), and outside it."""
    sizes = {True: 0, False: 0}  # by whether in the head
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            sizes[in_head(name, backbone.head_modules)] += parameter.numel()
    return sizes[True], sizes[False]


def read_config(folder: Path) -> RunConfig:
    """Return the resolved configuration of the run in ``folder``; ValueError if it has none."""
    path = folder / "config.yaml"
    try:
        return build(parse_yaml(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"{path} is no configuration of a run ({why})") from error


def load_run(folder: Path) -> tuple[PreTrainedTokenizerBase, nn.Module]:
    """Return tokenizer and model (in evaluation mode) of a finished run, as at its last step.

    The trained parameters come from ``folder/adapter``, of which only safetensors are read.

    Raises:
        ValueError: ``folder`` holds no finished run, its files are damaged or lead elsewhere, or
            its parameters belong to another model.
    """
    if status(folder) != "finished":
        raise ValueError(f"{folder} holds no finished run (status: {status(folder)})")
    lora2.register()
    config = read_config(folder)
    adapter = folder / "adapter"
    tokenizer, base = load_start(config)  # backbone.random_init draws the same encoder again
    set_labels(base.config, TASKS[config.task], TASKS[config.task].problem_type)
    is_peft = (adapter / "adapter_config.json").is_file()
    path = adapter / ("adapter_model.safetensors" if is_peft else "trainable.safetensors")
    try:
        saved = load_file(path)
        if is_peft:
            kind = PeftConfig.from_pretrained(str(adapter)).peft_type
            method = config.method  # of another type, an adapter may name more folders to load
            if kind != (method.type if isinstance(method, Peft) else method.name).upper():
                raise ValueError(f"an adapter of type {kind} in a run of {method.name}")
            model: nn.Module = PeftModel.from_pretrained(base, str(adapter))
            odd = saved.keys() ^ get_peft_model_state_dict(model).keys()
        else:
            model, odd = base, {*base.load_state_dict(saved, strict=False).unexpected_keys}
        if odd:
            raise ValueError(f"{min(odd)} is in the file or in the model, but not in both")
    # PEFT and safetensors raise many unrelated kinds for a missing or broken file.
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        wrong = "or its adapter_config.json is damaged, or was saved from another encoder or method"
        raise ValueError(f"{path} {wrong}: {why}") from error
    return tokenizer, model.eval()


def shaped(name: str, layers: int | None = None) -> PreTrainedConfig:
    """Return the configuration of a published encoder, with another number of layers if given."""
    values = dict(SHAPES[name])
    if layers is not None:
        values["num_hidden_layers"] = layers
    return AutoConfig.for_model(values.pop("model_type"), **values)


def encoder_config(backbone: Backbone) -> PreTrainedConfig:
    """Return the encoder's configuration from its folder, the package, or ``SHAPES``."""
    if backbone.path is None:
        return AutoConfig.from_pretrained(encoder_path(backbone.name))
    folder = Path(backbone.path).expanduser()
    if (folder / "config.json").is_file():
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if backbone.name not in SHAPES:
        missing = f"the shape of {backbone.name} is not available"
        raise LookupError(f"{missing}: give backbone.path=DIR with its config.json")
    return shaped(backbone.name)


def random_encoder(
    config: PreTrainedConfig, num_labels: int = 2, attention: str | None = None
) -> PreTrainedModel:
    """Return a classifier with weights drawn from torch's generator."""
    config.num_labels = num_labels
    kinds = {"dtype": torch.float32, "attn_implementation": attention}
    return AutoModelForSequenceClassification.from_config(config, **kinds)


def longest(config: PreTrainedConfig, wanted: int) -> int:
    """Return ``wanted`` tokens, or as many as the encoder has positions for."""
    # RoBERTa's positions start after the padding token's.
    return min(wanted, config.max_position_embeddings - 2 * (config.model_type == "roberta"))
