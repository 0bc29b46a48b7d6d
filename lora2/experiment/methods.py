"""From a method's configuration to a model whose right parameters are trainable."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from peft import AdaLoraConfig, LoraConfig, PeftConfig, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn
from transformers import PreTrainedModel

import lora2
from lora2.experiment.adalora import AdaloraDriver
from lora2.experiment.problems import ConfigError, Problem, nearest
from lora2.experiment.schema import (
    Adalora,
    Backbone,
    Bitfit,
    Full,
    Lora,
    Lora2,
    LoraXs,
    Peft,
    RunConfig,
    Sora,
    Train,
)
from lora2.tuners.bitfit import in_head as in_head
from lora2.tuners.bitfit import train_biases
from lora2.tuners.lora2 import Lora2Config
from lora2.tuners.lora_xs import LoraXsConfig
from lora2.tuners.sora import SoraConfig


def prepare(model: PreTrainedModel, config: RunConfig, steps: int) -> tuple[nn.Module, Any]:
    """Return the model to train and its driver, an object with the hooks of ``lora2.callbacks``.

    The driver is None where nothing has to be done beside the optimiser's steps. ``steps`` is the
    run's number of optimiser steps, for methods with a schedule.

    Raises:
        ConfigError: a PEFT type or an argument of its config class is not known; a name of a module
            matches nothing in ``model``; a rank is more than its width.
    """
    method = config.method
    check_model(model, config)
    if isinstance(method, Full):
        return model, None
    if isinstance(method, Bitfit):
        train_biases(model, config.backbone.head_modules)
        return model, None
    peft_model = get_peft_model(model, peft_config(config, steps))
    if isinstance(method, Adalora):
        return peft_model, AdaloraDriver(peft_model)
    tuner = peft_model.base_model
    return peft_model, tuner if hasattr(type(tuner), "training_state") else None


def check_model(model: PreTrainedModel, config: RunConfig) -> None:
    """Refuse what an encoder from the hub shows only when it is loaded.

    Raises:
        ConfigError: naming every name of a module that matches nothing, and every rank too high.
    """
    names, backbone, method = dict(model.named_modules()), config.backbone, config.method
    heads = [name.rpartition(".")[2] for name in names if name]  # BERT's pooler is bert.pooler
    problems = [
        Problem("backbone.head_modules", one, f"modules of its head; {nearest(one, heads)}")
        for one in backbone.head_modules
        if one not in heads
    ]
    targets = getattr(method, "target_modules", None) or []
    for target in targets:
        if not any(re.fullmatch(target_pattern([target], backbone), name) for name in names):
            key, path = f"backbone.targets.{target}", backbone.targets[target]
            problems.append(Problem(key, path, "the path of a matrix inside each layer"))
    width = int(model.config.hidden_size)
    for key in ("r", "k", "init_r"):
        rank = getattr(method, key, None)
        if rank is not None and rank > width:
            problems.append(Problem(f"method.{key}", rank, f"at most {width}, the encoder's width"))
    if problems:
        raise ConfigError(problems)


def target_pattern(targets: list[str], backbone: Backbone) -> str:
    """Return a regular expression for PEFT that matches our names of matrices in every layer.

    Paths are matched whole: PEFT's suffix lists would let ``output.dense`` catch
    ``attention.output.dense`` too, and ``dense`` the pooler.
    """
    paths = "|".join(re.escape(backbone.targets[target]) for target in targets)
    return rf".*\.layer\.\d+\.(?:{paths})"


def peft_config(config: RunConfig, steps: int) -> PeftConfig:
    """Return the PEFT configuration of any method but ``full`` and ``bitfit``."""
    method, backbone = config.method, config.backbone
    if isinstance(method, Peft):
        return _any_peft_config(method, backbone)
    values = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    del values["name"]
    values |= {
        "target_modules": target_pattern(values["target_modules"], backbone),
        "modules_to_save": list(backbone.head_modules),
        "task_type": "SEQ_CLS",
    }
    if isinstance(method, Lora):
        return LoraConfig(**values)
    if isinstance(method, Adalora):
        if method.target_r == method.init_r:
            values |= {"tinit": 0, "tfinal": 0}  # nothing is allocated, any schedule is right
        return AdaLoraConfig(**values, total_step=steps)
    if isinstance(method, Lora2):
        del values["lambda_lr_ratio"]  # the optimiser's
        values["init_weights"] = method.init_weights or True
        return Lora2Config(**values, total_step=steps)
    if isinstance(method, Sora):
        values["gate_lr"] = method.gate_lr or config.train.learning_rate
        values["gate_warmup_ratio"] = warmup_share(config.train, steps)
        return SoraConfig(**values)
    assert isinstance(method, LoraXs)
    return LoraXsConfig(**values)


def warmup_share(train: Train, steps: int) -> float:
    """Return the share of the run's steps in which the learning rate rises."""
    return min(train.warmup_steps / steps, 1.0) if train.warmup_steps else train.warmup_ratio


def _any_peft_config(method: Peft, backbone: Backbone) -> PeftConfig:
    kind = method.type.upper()
    lora2.register()
    known = {member.value for member in PEFT_TYPE_TO_CONFIG_MAPPING}
    if kind not in known:
        raise ConfigError([Problem("method.type", method.type, nearest(kind, known))])
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[kind]]
    fields = {field.name for field in dataclasses.fields(config_class) if field.init}
    problems = [
        Problem(f"method.args.{key}", value, f"unknown to {kind}; {nearest(key, fields)}")
        for key, value in method.args.items()
        if key not in fields
    ]
    if problems:
        raise ConfigError(problems)
    values: dict[str, Any] = {"task_type": "SEQ_CLS"}
    if "modules_to_save" in fields:
        values["modules_to_save"] = list(backbone.head_modules)
    if "target_modules" in fields and method.target_modules is not None:
        values["target_modules"] = target_pattern(list(method.target_modules), backbone)
    try:
        return config_class(**{**values, **method.args})
    except (TypeError, ValueError) as error:
        raise ConfigError([Problem("method.args", method.args, str(error))]) from error
