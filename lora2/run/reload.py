"""A finished run's model again, as it was at its last step."""

from __future__ import annotations

import json
from pathlib import Path

from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, set_seed

import lora2
from lora2.config.load import build
from lora2.config.parse import parse_yaml
from lora2.config.schema import Peft, RunConfig
from lora2.glue.tasks import TASKS
from lora2.records.paths import status
from lora2.records.store import link_in
from lora2.run.backbone import load_backbone

WEIGHTS = {True: "adapter_model.safetensors", False: "trainable.safetensors"}  # PEFT's, and ours


def read_config(folder: Path) -> RunConfig:
    """Return the resolved configuration of the run in ``folder``.

    Raises:
        ValueError: config.yaml is not there, not plain YAML, or no configuration of a run.
    """
    path = folder / "config.yaml"
    try:
        return build(parse_yaml(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"{path} is no configuration of a run ({why})") from error


def load_run(folder: Path) -> tuple[PreTrainedTokenizerBase, nn.Module]:
    """Return tokenizer and model (in evaluation mode) of a finished run.

    The encoder comes from where the run took it; the trained parameters from ``folder/adapter``,
    of which safetensors alone are read.

    Raises:
        ValueError: ``folder`` holds no finished run, its files are damaged or lead elsewhere, or
            its parameters are of another model.
    """
    if status(folder) != "finished":
        raise ValueError(f"{folder} holds no finished run (status: {status(folder)})")
    if link := link_in(folder):
        raise ValueError(f"{folder}: {link} is a link: copy its target to that place")
    lora2.register()
    config = read_config(folder)
    adapter = folder / "adapter"
    by_peft = (adapter / "adapter_config.json").is_file()
    if by_peft:
        _check_adapter_config(adapter, config)
    trained = _read_weights(adapter / WEIGHTS[by_peft])
    set_seed(config.seed)  # backbone.random_init draws the same encoder again
    task = TASKS[config.task]
    tokenizer, base = load_backbone(config.backbone, task, config.train.cls_dropout)
    load = _with_adapter if by_peft else _with_weights
    model = load(base, adapter, trained)
    return tokenizer, model.eval()


def _check_adapter_config(adapter: Path, config: RunConfig) -> None:
    """Refuse an adapter of another kind than the run's: some kinds name further folders to load."""
    method = config.method
    wanted = (method.type if isinstance(method, Peft) else method.name).upper()
    path = adapter / "adapter_config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["peft_type"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} is no configuration of an adapter: {error}") from error
    if found != wanted:
        raise ValueError(f"{path} is of a {found} adapter, but its run trained {wanted}")


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {error}; repeat the run") from error


def _with_adapter(base: nn.Module, adapter: Path, trained: dict[str, Tensor]) -> nn.Module:
    try:
        model = PeftModel.from_pretrained(base, str(adapter))
    except (ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise _of_another(adapter, why) from error
    _compare(adapter, trained, get_peft_model_state_dict(model))
    return model


def _with_weights(base: nn.Module, adapter: Path, trained: dict[str, Tensor]) -> nn.Module:
    own = base.state_dict()
    for name, tensor in trained.items():
        if name not in own or own[name].shape != tensor.shape:
            raise _of_another(adapter, _shape(name, tensor, own.get(name)))
    base.load_state_dict(trained, strict=False)
    return base


def _compare(adapter: Path, trained: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Refuse parameters that the model lacks, and those of the model that were not saved."""
    for name in sorted(trained.keys() | own.keys()):
        saved, wanted = trained.get(name), own.get(name)
        if saved is None or wanted is None or saved.shape != wanted.shape:
            raise _of_another(adapter, _shape(name, saved, wanted))


def _shape(name: str, saved: Tensor | None, wanted: Tensor | None) -> str:
    shapes = ["not there" if one is None else str(tuple(one.shape)) for one in (saved, wanted)]
    return f"{name} is {shapes[0]} in the file and {shapes[1]} in the model"


def _of_another(adapter: Path, why: str) -> ValueError:
    return ValueError(f"{adapter} was saved from another encoder or method: {why}")
