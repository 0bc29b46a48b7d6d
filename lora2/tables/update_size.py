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
from collections.abc import Sequence

from torch import nn
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, set_seed
from transformers.utils import logging

from lora2.bench.step import Batch, batches
from lora2.bench.update_size import Update, UpdateSizes, update_sizes
from lora2.config.load import Resolved, resolve
from lora2.config.schema import RunConfig
from lora2.glue.tasks import TASKS
from lora2.glue.tokenize import tokenize
from lora2.hub import check_available
from lora2.run.methods import prepare
from lora2.run.model import load_backbone, random_encoder, shaped
from lora2.run.run import load_data
from lora2.run.trainer import build_optimizer
from lora2.sweep.pool import command
from lora2.sweep.table import load_table

STEPS = 10  # of the second column of sizes
LAYERS = 2  # of an encoder with random weights: all layers are alike
START = ("method.init_weights=orthogonal", "method.lambda_lr_ratio=auto")


def show(words: Sequence[str]) -> int:
    """Print a line for each row of Table 1, or for each weight of the method in ``words``."""
    runs = _runs(words)
    logging.set_verbosity_error()  # or transformers warns that the head is untrained
    logging.disable_progress_bar()
    base, data = _encoder(next(iter(runs.values())).config)
    heads = ("rate", "first step", f"after {STEPS}", "LoRA's first", "rate for LoRA's")
    print(f"{'':<32}" + "".join(f"{head:>18}" for head in heads) + "  near Adam's epsilon")
    for row, resolved in runs.items():
        sizes = _measure(resolved, base, data)
        for update in sizes.updates if len(runs) == 1 else ():
            print(_line(update.name[-32:], sizes, update))
        print(_line(row, sizes, sizes.total), flush=True)
    return 0


def _runs(words: Sequence[str]) -> dict[str, Resolved]:
    if any(word.startswith("method=") for word in words):
        return {"in all": resolve(list(words))}
    rows = {row.id: [f"method={row.method}", *row.overrides] for row in load_table("1").rows}
    ours = {f"{name}, orthogonal": [*r, *START] for name, r in rows.items() if "lora2" in name}
    return {name: resolve([*row, *words]) for name, row in {**rows, **ours}.items()}


def _encoder(config: RunConfig) -> tuple[nn.Module, list[Batch]]:
    """Return an encoder with a new head, and batches of a run's first rows or of random tokens."""
    task, size = TASKS[config.task], config.train.batch_size
    set_seed(config.seed)
    if config.backbone.random_init:
        shape = shaped(config.backbone.name, layers=LAYERS)
        return random_encoder(shape, task.num_labels), batches(config, STEPS)
    check_available(config.hub_needs())
    tokenizer, base = load_backbone(config.backbone, task, config.train.cls_dropout)
    frame = load_data(config).train.head(STEPS * size)
    rows = tokenize(frame, task, tokenizer, config.train.max_seq_length)
    return base, list(DataLoader(rows, size, collate_fn=DataCollatorWithPadding(tokenizer)))


def _measure(resolved: Resolved, base: nn.Module, data: list[Batch]) -> UpdateSizes:
    config, steps = resolved.config, resolved.steps or STEPS
    set_seed(config.seed)
    model, driver = prepare(copy.deepcopy(base), config, steps)
    clip, head = config.train.max_grad_norm, config.backbone.head_modules
    return update_sizes(
        model, build_optimizer(model, config), data, STEPS, head=head, driver=driver,
        total_step=steps, max_grad_norm=clip,
    )  # fmt: skip


def _line(label: str, sizes: UpdateSizes, update: Update) -> str:
    rate = f"{sizes.lr * update.factor:.2g} (x{update.factor:.3g})"
    if not 0 < update.factor < math.inf:
        rate = "does not move" if update.first == 0 else "-"  # a bias has no LoRA
    norms = (f"{norm:.2e}" for norm in (update.first, update.last, update.lora))
    columns = (f"{sizes.lr:g}", *norms, rate)
    whole, start = update.name == "in all", f"{update.name}."
    kinds = Counter(_kind(name) for name in sizes.near_eps if whole or name.startswith(start))
    tail = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return f"{label:<32}" + "".join(f"{column:>18}" for column in columns) + f"  {tail}"


def _kind(parameter: str) -> str:
    """Return the last part of a parameter's name: lora2_lambda, key.bias."""
    parts = [part for part in parameter.split(".") if part not in ("default", "weight")]
    return ".".join(parts[-2:] if parts[-1] == "bias" else parts[-1:])


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:], __doc__, show))
