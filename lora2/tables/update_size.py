"""Measure how far a method's first steps move a model's weights, compared with LoRA's.

Takes the words of scripts/run_glue.py. Without method=, it measures every row of Table 1, and LoRA2
with the orthogonal start; with method=, that method, weight by weight. backbone.random_init=true
uses two random layers of the encoder's shape and random tokens, and needs no file.

python -m lora2.tables.update_size task=cola backbone=minilm data.dir=GLUE_FOLDER train.batch_size=8
usage: python -m lora2.tables.update_size task=TASK [method=METHOD] [backbone=NAME] [key=value ...]
"""

from __future__ import annotations

import copy
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import set_seed

from lora2.bench.step import Batch, Stepper, batches, real_batches
from lora2.config.load import Resolved, resolve
from lora2.config.schema import RunConfig
from lora2.glue.tasks import TASKS
from lora2.hub import check_available
from lora2.run.methods import prepare
from lora2.run.model import in_head, load_backbone, random_encoder, shaped
from lora2.run.run import load_data
from lora2.run.trainer import build_optimizer
from lora2.sweep.command import command, quiet_transformers
from lora2.sweep.table import load_table

STEPS = 10  # before the second column of sizes is measured
PUBLISHED = ("method.init_weights=null", "method.lambda_lr_ratio=null")
START = ("method.init_weights=orthogonal", "method.lambda_lr_ratio=auto")


class Update(NamedTuple):
    """||dW||_F of one weight, or of all of them."""

    name: str
    first: float  # after the first step
    last: float  # after all steps
    lora: float  # after LoRA's first step; nan if the weight is not a linear map's (a bias)


def show(words: Sequence[str]) -> int:
    """Print a line for each row of Table 1, or for each weight of the method in ``words``."""
    if any(word.startswith("method=") for word in words):
        runs = {"in all": resolve(list(words))}
    else:
        rows = {row.id: [f"method={row.method}", *row.overrides] for row in load_table("1").rows}
        lora2 = {name: row for name, row in rows.items() if "lora2" in name}
        rows |= {name: [*row, *PUBLISHED] for name, row in lora2.items()}
        rows |= {f"{name}, orthogonal": [*row, *START] for name, row in lora2.items()}
        runs = {name: resolve([*row, *words]) for name, row in rows.items()}
    quiet_transformers()
    base, data = _encoder(next(iter(runs.values())).config)
    heads = ("rate", "first step", f"after {STEPS}", "LoRA's first", "rate for LoRA's")
    print(f"{'':<32}" + "".join(f"{head:>18}" for head in heads) + "  near Adam's epsilon")
    for row, resolved in runs.items():
        lr, updates, near = measure(resolved, base, data)
        if len(runs) == 1:
            for update in updates:
                inside = [name for name in near if name.startswith(f"{update.name}.")]
                print(_line(update.name[-32:], lr, update, inside))
        print(_line(row, lr, _total(updates), near), flush=True)
    return 0


def _encoder(config: RunConfig) -> tuple[nn.Module, list[Batch]]:
    """Return an encoder with a new head, and batches of a run's first rows or of random tokens."""
    task = TASKS[config.task]
    set_seed(config.seed)
    if config.backbone.random_init:
        shape = shaped(config.backbone.name, layers=2)  # all are alike
        return random_encoder(shape, task.num_labels), batches(config, STEPS)
    check_available(config.hub_needs())
    tokenizer, base = load_backbone(config.backbone, task, config.train.cls_dropout)
    return base, real_batches(load_data(config).train, config, tokenizer, STEPS)


def measure(
    resolved: Resolved, base: nn.Module, data: Sequence[Batch]
) -> tuple[float, list[Update], list[str]]:
    """Return the rate of a run, and ``updates`` of a copy of ``base`` in its first steps."""
    config, total = resolved.config, resolved.steps or STEPS
    set_seed(config.seed)
    model, driver = prepare(copy.deepcopy(base), config, total)
    optimizer = build_optimizer(model, config)
    torch.manual_seed(0)
    stepper = Stepper(model, driver, optimizer, config.train, total)  # without warmup
    steps = (stepper.step(data[number % len(data)]) for number in range(STEPS))
    head = ("modules_to_save", *config.backbone.head_modules)
    return optimizer.defaults["lr"], *updates(model, optimizer, steps, head)


def updates(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterator[None],
    head: Sequence[str] = ("modules_to_save",),
) -> tuple[list[Update], list[str]]:  # fmt: skip
    """Measure how far ``steps``, each a training step, move any model with PEFT's layers.

    Returns the update of each weight outside of ``head``, and the parameters near Adam's eps.
    """
    lr, eps, near = optimizer.defaults["lr"], optimizer.defaults["eps"], list[str]()

    def record(*_: Any) -> None:
        for name, p in model.named_parameters():
            rms = 0.0 if p.grad is None else float(p.grad.square().mean().sqrt())
            # Adam's first step is lr g / (|g| + eps): below 100 eps it is 1 % shorter or more.
            if 0 < rms < 100 * eps and not in_head(name, head):
                near.append(name)

    start = _weights(model, head)
    with optimizer.register_step_pre_hook(record):
        next(steps)
    first = _weights(model, head)
    list(steps)
    last, moved = _weights(model, head), list[Update]()
    for name, weight in start.items():
        norms = (float((after[name] - weight).norm()) for after in (first, last))
        moved.append(Update(name, *norms, lr * _lora_step(model, name, weight)))
    return moved, near


@torch.no_grad()
def _weights(model: nn.Module, head: Sequence[str]) -> dict[str, Tensor]:
    """Return name -> each trained weight, adapters merged, in double: an update may be tiny."""
    weights, within = dict[str, Tensor](), set[Tensor]()
    for name, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer):
            merged = copy.deepcopy(layer).double()
            merged.merge()
            weights[name] = merged.get_base_layer().weight
            within |= set(layer.parameters())
    for name, p in model.named_parameters():
        if p.requires_grad and p not in within and not in_head(name, head):
            weights[name] = p.detach().double()
    return weights


def _lora_step(model: nn.Module, name: str, weight: Tensor) -> float:
    """Return ||dW||_F / lr of LoRA's first step on a weight (d_out, d_in); nan unless linear.

    It is alpha / r sqrt(r d_out / 3): Adam moves each of the d_out r entries of B = 0 by lr, and a
    row of A, kaiming-uniform, has the squared norm 1/3. alpha and r are the method's, or 16 and 8.
    LoRA2 is compared with the rank min(k, r).
    """
    module = model.get_submodule(name.removesuffix(".weight").removesuffix(".bias"))
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    if weight.ndim != 2 or not isinstance(base, nn.Linear):
        return math.nan
    config = getattr(model, "active_peft_config", None)
    r = getattr(config, "init_r", getattr(config, "r", None))  # AdaLoRA's r is not used
    alpha, r = (config.lora_alpha, r) if getattr(config, "lora_alpha", None) and r else (16, 8)
    return alpha / r * math.sqrt(min(r, getattr(config, "k", r)) * weight.shape[0] / 3)


def _total(updates: Sequence[Update]) -> Update:
    """Return all weights as one; only linear maps if there are any, as LoRA's are."""
    linear = [update for update in updates if not math.isnan(update.lora)] or updates
    return Update("in all", *map(math.hypot, *(update[1:] for update in linear)))


def _line(label: str, lr: float, update: Update, near: Sequence[str]) -> str:
    rate = "does not move" if update.first == 0 else "-"  # a bias has no LoRA
    if update.first and update.lora > 0:  # lr or alpha times the factor steps as far as LoRA
        factor = update.lora / update.first
        rate = f"{lr * factor:.2g} (x{factor:.3g})"
    columns = (f"{lr:g}", *(f"{norm:.2e}" for norm in update[1:]), rate)
    parts = ([s for s in name.split(".") if s not in ("default", "weight")] for name in near)
    kinds = Counter(".".join(p[-2:] if p[-1] == "bias" else p[-1:]) for p in parts)  # key.bias
    tail = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return f"{label:<32}" + "".join(f"{column:>18}" for column in columns) + f"  {tail}"


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:], __doc__, show))
