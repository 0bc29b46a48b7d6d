"""Build a method on an encoder: PEFT's configurations, checks of their arguments, drivers."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

import torch
from peft import AdaLoraConfig, AdaLoraModel, PeftConfig, PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from pydantic import PydanticUserError, TypeAdapter, ValidationError
from torch import nn
from transformers import PreTrainedModel

import lora2
from lora2.config.problems import ConfigError, Problem, ProblemList, unknown
from lora2.config.schema import Adalora, Head, Lora2, Peft, Plain, RunConfig, Sora
from lora2.run.adalora import AdaloraDriver, AllocationDriver
from lora2.run.model import in_head

# Arguments of PEFT's config classes that every run sets.
SET_BY_US = ("task_type", "inference_mode", "peft_type", "modules_to_save", "total_step")
# Arguments that need more than optimiser steps: without it another method would train silently.
UNSERVED = {
    "eva_config": "EVA starts from data, which a run does not pass to it",
    "corda_config": "CorDA starts from data, which a run does not pass to it",
    "lora_ga_config": "LoRA-GA starts from gradients, which a run does not pass to it",
    "kasa_config": "KaSA's loss term would not be added",
    "monteclora_config": "MonteCLoRA's loss term would not be added",
    "arrow_config": "Arrow routes between trained adapters, and a run trains one",
}
LONGEST = 100_000_000  # steps of a run, as the schema allows


def prepare(model: PreTrainedModel, config: RunConfig, steps: int) -> tuple[nn.Module, Any]:
    """Return the model to train and its driver, an object with the hooks of ``lora2.callbacks``.

    The driver is None where nothing has to be done beside the run's optimiser ``steps``.

    Raises:
        ConfigError: PEFT does not know the type or an argument of its config class, or cannot
            build the method on this encoder.
    """
    method = config.method
    if isinstance(method, Plain):
        if method.name == "bitfit":  # arXiv 2106.10199: biases and the head
            for name, parameter in model.named_parameters():
                head = in_head(name, config.backbone.head_modules)
                parameter.requires_grad_(head or name.split(".")[-1] == "bias")
        return model, None
    adapter = peft_config(config, steps)
    peft = isinstance(method, Peft)
    peft_model = _try_peft(model, adapter, method) if peft else get_peft_model(model, adapter)
    tuner = peft_model.base_model
    if isinstance(tuner, AdaLoraModel):
        return peft_model, AdaloraDriver(peft_model)
    if hasattr(type(tuner), "training_state"):
        return peft_model, tuner
    allocates = hasattr(type(tuner), "update_and_allocate")
    return peft_model, AllocationDriver(tuner) if allocates else None


def _try_peft(model: PreTrainedModel, adapter: PeftConfig, method: Peft) -> PeftModel:
    """Wrap the model and pass three tokens through it: many of PEFT's types fail only there."""
    try:
        peft_model = get_peft_model(model, adapter)
        tokens = torch.full((2, 3), 2, device=model.device)  # (rows, tokens)
        with torch.no_grad(), torch.random.fork_rng():
            if model.device.type != "meta":
                peft_model.eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # PEFT's methods raise many unrelated kinds
        why = " ".join(str(error).split()) or type(error).__name__
        wrong = f"{adapter.peft_type.value} cannot be built from them on this encoder: {why}"
        raise ConfigError([Problem("method.args", method.args, wrong=wrong)]) from error
    return peft_model


def check_model(model: PreTrainedModel, config: RunConfig, tokens: int) -> None:
    """Refuse names, ranks and a length that do not fit an encoder, once it is loaded.

    ``tokens`` is the longest input that its tokenizer allows.
    """
    problems, width = ProblemList(), model.config.hidden_size
    for key in ("r", "k", "init_r"):
        if (rank := getattr(config.method, key, 0)) > width:
            allowed = f"at most {width}, the encoder's width: no matrix has a higher rank"
            problems.append(Problem(f"method.{key}", rank, allowed))
    if (length := config.train.max_seq_length) > tokens:
        allowed = f"at most the {tokens} tokens that the encoder reads"
        problems.append(Problem("train.max_seq_length", length, allowed))
    problems += _targets(dict(model.named_modules()), config)
    inner = getattr(model, model.base_model_prefix, model)  # BERT's pooler is bert.pooler
    parts = {**dict(inner.named_children()), **dict(model.named_children())}
    heads = [name for name in typing.get_args(Head) if name in parts]
    for name in config.backbone.head_modules:
        if name not in heads:
            wrong = "no module of the encoder's head"
            problems.append(unknown("backbone.head_modules", name, heads, wrong))
    problems.raise_if_any()


def _targets(modules: dict[str, nn.Module], config: RunConfig) -> Iterator[Problem]:
    """Yield the paths of targets, and PEFT's own names of modules, that match no module."""
    matrices = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    inside = {match[1] for name in matrices if (match := re.search(r"\.layer\.\d+\.(.+)$", name))}
    wrong = "no path of a matrix inside each layer"
    for target, path in config.backbone.targets.items():
        if path not in inside:
            yield unknown(f"backbone.targets.{target}", path, inside, wrong)
    chosen = getattr(config.method, "args", {}).get("target_modules")
    wrong = "not the end of a matrix's path"
    for suffix in chosen if isinstance(chosen, list) else []:
        if not any(f".{name}".endswith(f".{suffix}") for name in modules):
            yield unknown("method.args.target_modules", suffix, inside, wrong)


def peft_config(config: RunConfig, steps: int | None) -> PeftConfig:
    """Return the PEFT configuration of any method but ``full`` and ``bitfit``.

    ``steps`` of the run are None before they are known (``Peft`` only).
    Raises ConfigError: PEFT does not know the type or an argument of ``Peft``, or refuses a value.
    """
    method, backbone = config.method, config.backbone
    lora2.register()
    if isinstance(method, Peft):
        kind, args = method.type.upper(), method.args
        if kind not in (known := {member.value for member in PEFT_TYPE_TO_CONFIG_MAPPING}):
            raise ConfigError([unknown("method.type", method.type, known, name=kind)])
        ProblemList(_wrong_arguments(kind, method)).raise_if_any()
    else:
        kind, args = method.name.upper(), _own_arguments(config)
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[kind]]
    fields = {field.name for field in dataclasses.fields(config_class)}
    values: dict[str, Any] = {"task_type": "SEQ_CLS"}
    if "modules_to_save" in fields:
        values["modules_to_save"] = list(backbone.head_modules)
    if "target_modules" in fields and method.target_modules is not None:
        # In every layer, each path as a whole: output.dense is not attention.output.dense.
        paths = "|".join(re.escape(backbone.targets[name]) for name in method.target_modules)
        values["target_modules"] = rf".*\.layer\.\d+\.(?:{paths})"
    if "total_step" in fields:
        values["total_step"] = LONGEST if steps is None else steps
    try:
        adapter = config_class(**{**values, **args})
    except (TypeError, ValueError) as error:
        raise ConfigError([Problem("method.args", args, str(error))]) from error
    if isinstance(adapter, AdaLoraConfig) and adapter.target_r > adapter.init_r:
        allowed = f"at most init_r, which is {adapter.init_r}"
        raise ConfigError([Problem("method.args.target_r", adapter.target_r, allowed)])
    return adapter


def _own_arguments(config: RunConfig) -> dict[str, Any]:
    """Return the arguments of a method with a section of its own in ``config/schema.py``."""
    method, train = config.method, config.train
    others = ("name", "target_modules", "lambda_lr_ratio")  # the last is the optimiser's
    values = {key: value for key, value in vars(method).items() if key not in others}
    if isinstance(method, Adalora) and method.target_r == method.init_r:
        values |= {"tinit": 0, "tfinal": 0}  # nothing is allocated, any schedule is right
    if isinstance(method, Lora2):
        values["init_weights"] = method.init_weights or True
    if isinstance(method, Sora):  # its gates follow the schedule of the learning rate
        values["gate_lr"] = method.gate_lr or train.learning_rate
        values["gate_warmup_steps"] = train.warmup_steps or train.warmup_ratio
    return values


def _wrong_arguments(kind: str, method: Peft) -> Iterator[Problem]:
    """Yield the arguments that the config class does not have, or not with that value."""
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[kind]]
    types = typing.get_type_hints(config_class)
    fields = {field.name for field in dataclasses.fields(config_class) if field.init}
    targets = method.target_modules
    if targets is not None and "target_modules" not in fields:
        yield Problem("method.target_modules", targets, f"null: {kind} adapts no chosen modules")
    for key, value in method.args.items():
        unserved = f"{value}_config" if key == "init_lora_weights" else key
        wrong = UNSERVED.get(unserved, "") if value else ""
        if key in SET_BY_US:
            wrong = "is set automatically; remove it"
        elif kind == "ADALORA" and key in ("r", "rank_pattern"):
            wrong = "use init_r and target_r"
        allowed = "" if wrong or key not in fields else _allowed(kind, types[key], value)
        if key == "target_modules" and targets is not None:
            allowed = f"nothing beside method.target_modules, which is {targets}"
        if wrong or allowed:
            yield Problem(f"method.args.{key}", value, allowed, wrong)
        elif key not in fields:
            names = fields - {*SET_BY_US}
            yield unknown(f"method.args.{key}", value, names, f"unknown to {kind}", str(key))


def _allowed(kind: str, annotation: Any, value: Any) -> str:
    """Return what a field of a config class allows instead of ``value``, "" if it allows that."""
    placeholder = "[number" in str(annotation)  # Literal['pissa_niter_[number of iters]']: any
    try:
        if not placeholder:
            TypeAdapter(annotation).validate_python(value, strict=True)
    except ValidationError:
        return f"{kind} takes {inspect.formatannotation(annotation)}"
    except PydanticUserError:
        pass  # a type that pydantic does not know
    return ""
