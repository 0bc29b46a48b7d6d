"""Measure what the bench reports: training steps, inference, the driver."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import AutoTokenizer, PreTrainedConfig, TrainerCallback

from lora2.bench import step
from lora2.bench.counters import counting
from lora2.config.load import resolve
from lora2.config.schema import RunConfig
from lora2.embedded import encoder_path
from lora2.glue.tasks import TASKS
from lora2.run.device import autocast
from lora2.run.methods import prepare
from lora2.run.model import random_encoder, shaped
from lora2.run.recorder import Recorder
from lora2.run.trainer import build_trainer

Row = dict[str, object]
SEED = 1
TASK = "mrpc"  # the paper's sentence-pair classification with two labels
# An allocator masks from the first step on and after every step, so its costly part is timed.
MASKING = "method.tinit=0 method.tfinal=1 method.deltaT=1"
METHODS = {  # row id, as in the tables -> label, words
    "full": ("Full fine-tuning", "method=full"),
    "bitfit": ("BitFit", "method=bitfit"),
    "lora-r8": ("LoRA r=8", "method=lora method.r=8"),
    "adalora-r8": (
        "AdaLoRA r=8", f"method=adalora method.init_r=12 method.target_r=8 {MASKING}"
    ),
    "sora-r8": ("SoRA r=8", "method=sora method.r=8"),
    "lora2-k1": ("LoRA² k=1", f"method=lora2 method.r=8 method.k=1 {MASKING}"),
    "lora2-k8": ("LoRA² k=8", f"method=lora2 method.r=8 method.k=8 {MASKING}"),
    "lora-xs": ("LoRA-XS r=16", "method=lora_xs method.r=16"),
}  # fmt: skip
DRIVEN = "lora2-k8"  # the method of the driver's row


@dataclasses.dataclass(frozen=True)
class Case:
    """An encoder with random weights, the size of its batches, and where it runs."""

    encoder: str  # a name of config.parse.SHAPES
    layers: int | None  # None: the published number
    batch: int  # sequences
    tokens: int  # of each
    precision: str  # fp32, bf16 or fp16 (autocast)
    device: str

    def config(self) -> PreTrainedConfig:
        return shaped(self.encoder, self.layers)

    def base(self) -> nn.Module:
        torch.manual_seed(SEED)
        return random_encoder(self.config()).to(self.device)

    def rows(self, count: int) -> step.Batch:
        """Return ``count`` rows without padding, on the CPU."""
        generator, lengths = torch.Generator().manual_seed(SEED), torch.full((count,), self.tokens)
        return step.padded_batch(lengths, self.config().vocab_size, 2, generator)

    def full_batch(self) -> step.Batch:
        return {key: value.to(self.device) for key, value in self.rows(self.batch).items()}

    def run(self, row: str) -> RunConfig:
        words = [f"task={TASK}", f"backbone={self.encoder}", *METHODS[row][1].split()]
        words += [f"train.precision={self.precision}", f"train.batch_size={self.batch}"]
        return resolve(words).config

    def columns(self) -> Row:
        """Return the columns that name this case in a CSV."""
        config = self.config()
        return {
            "encoder": self.encoder, "layers": config.num_hidden_layers,
            "width": config.hidden_size, "precision": self.precision, "batch": self.batch,
            "tokens": self.tokens,
        }  # fmt: skip


def times(seconds: Sequence[float], **bases: Sequence[float] | None) -> Row:
    """Return median and quartiles, and the ratio to each named base, taken round by round."""
    low, middle, high = step.quartiles(seconds)
    columns: Row = {"rounds": len(seconds), "seconds": middle}
    columns |= {"seconds_q1": low, "seconds_q3": high}
    for name, base in bases.items():
        columns[f"ratio_to_{name}"] = step.ratio(seconds, base) if base else ""
    return columns


def training(case: Case, methods: Sequence[str], rounds: int, warm_up: int) -> list[Row]:
    """Return a row for each method; the methods take their steps in turn."""
    runs = {row: (case.run(row), step.STEPS) for row in methods}
    results = step.measure(runs, [case.full_batch()], rounds, warm_up, case.base(), fused=True)
    lora, adalora = results.get("lora-r8"), results.get("adalora-r8")
    rows = []
    for row, result in results.items():
        method, peak = runs[row][0].method, result.peak_memory_mb
        bases = {"lora": lora and lora.seconds, "adalora": adalora and adalora.seconds}
        rows.append({
            "phase": "train", **case.columns(), "row": row, "label": METHODS[row][0],
            "method": method.name, "r": getattr(method, "r", ""), "k": getattr(method, "k", ""),
            **times(result.seconds, **bases), "ratio_to_base": "",
            "kernels": result.kernels, "syncs": result.syncs, "trainable": result.trainable,
            "memory_mib": peak, "held_mib": result.held_memory_mb,
            "memory_ratio_to_lora": peak / lora.peak_memory_mb if lora else "",
        })  # fmt: skip
    return rows


def inference(case: Case, rounds: int, warm_up: int) -> list[Row]:
    """Return rows for a forward pass without gradients: no adapter, merged, unmerged, LoRA."""
    base, inputs = case.base(), case.full_batch()
    del inputs["labels"]

    def adapted(row: str) -> nn.Module:
        return prepare(copy.deepcopy(base), case.run(row), step.STEPS)[0].to(case.device).eval()

    def forward(model: nn.Module, _: int = 0) -> object:
        with torch.no_grad(), autocast(case.device, case.precision):
            return model(**inputs).logits

    models = {  # row -> label, model
        "base": ("no adapter", base.eval()),
        "merged": ("LoRA² k=8, merged", adapted("lora2-k8").merge_and_unload()),
        "unmerged": ("LoRA² k=8, unmerged", adapted("lora2-k8")),
        "lora": ("LoRA r=8, unmerged", adapted("lora-r8")),
    }
    actions = {row: partial(forward, model) for row, (_, model) in models.items()}
    seconds = step.interleave(actions, case.device, 4 * rounds, warm_up)  # a pass is short
    bases, rows = {"base": seconds["base"], "lora": seconds["lora"]}, list[Row]()
    for row, (label, _) in models.items():
        with counting(case.device) as counts:
            actions[row]()
        rows.append({"phase": "inference", **case.columns(), "row": row, "label": label,
                     **times(seconds[row], **bases),
                     "kernels": len(counts.kernels), "syncs": len(counts.syncs)})  # fmt: skip
    return rows


class BareBeside(TrainerCallback):
    """Time a Trainer's steps, data loading included, and after each one a step of a bare loop."""

    def __init__(self, bare_step: Callable[[], object], device: str) -> None:
        self.bare_step, self.clock = bare_step, step.own_clock(device)
        self.seconds: dict[str, list[float]] = {"bare": [], "driver": []}

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.started = self.clock()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        step.settle()
        middle = self.clock()
        self.bare_step()
        step.settle()
        self.seconds["driver"].append(middle - self.started)
        self.started = self.clock()
        self.seconds["bare"].append(self.started - middle)


def driver(case: Case, rounds: int, warm_up: int) -> list[Row]:
    """Return a row for the driver's training step and one for the same step in a bare loop.

    Both collate the same number of rows of one length for each step.
    """
    config, base, total = case.run(DRIVEN), case.base(), warm_up + rounds
    train = dataclasses.replace(config.train, eval_steps=total + 1, save_steps=None)
    config = dataclasses.replace(config, train=train)
    drawn = case.rows(case.batch * total)
    rows = Dataset.from_dict({key: value.tolist() for key, value in drawn.items()})
    model, tuner = prepare(copy.deepcopy(base), config, total)
    stepper, numbers = step.build(base, config, total), iter(range(len(rows)))
    last = rows.select(range(case.batch))  # evaluated once, after the last step
    tokenizer = AutoTokenizer.from_pretrained(encoder_path("embedded"))  # only pads
    recorder = Recorder(TASKS[TASK], {"validation": case.batch})
    with tempfile.TemporaryDirectory() as work:
        trainer = build_trainer(
            model, tokenizer, rows, last, config, total, recorder, tuner, Path(work), False
        )

        def bare_step() -> None:
            batch = trainer.data_collator([rows[next(numbers)] for _ in range(case.batch)])
            stepper.step({key: value.to(case.device) for key, value in batch.items()})

        beside = BareBeside(bare_step, case.device)
        trainer.add_callback(beside)
        trainer.train()
    seconds = {name: measured[warm_up:] for name, measured in beside.seconds.items()}
    return [
        {**case.columns(), "row": row, "label": label, **times(seconds[row], bare=seconds["bare"])}
        for row, label in {"bare": "a bare loop", "driver": "the driver"}.items()
    ]
