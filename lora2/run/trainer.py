"""Build a run's Trainer: tokens, batches, optimiser, arguments; the same for every method."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from lora2.callbacks import Lora2Callback
from lora2.config.schema import Lora2, RunConfig, Train, run_name
from lora2.glue.data import tokenize
from lora2.glue.tasks import Task
from lora2.records.files import hold
from lora2.run.device import world_size
from lora2.run.model import in_head
from lora2.run.recorder import Recorder
from lora2.tuners.lora2.optimizer import lambda_groups

Metrics = Callable[[EvalPrediction], dict[str, float]]


def tokenize_once(
    frame: pd.DataFrame, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int,
    folder: Path, rows_hash: str,
) -> Dataset:  # fmt: skip
    """``tokenize``, but keep what a fast tokenizer made in ``folder``.

    datasets writes and reads it; it is named by a hash of everything that decides the tokens.
    ``rows_hash`` stands for the rows (``GlueData.fingerprint`` and the split's name).
    """
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        return tokenize(frame, task, tokenizer, max_length)
    core.no_truncation()  # left over from the last call; each call sets its own
    core.no_padding()
    decides = [
        rows_hash, core.to_str(), tokenizer.model_input_names,
        tokenizer.truncation_side, tokenizer.model_max_length, max_length,
        version("tokenizers"), version("transformers"),
    ]  # fmt: skip
    path = folder / hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]
    with hold(path.with_suffix(".lock"), wait=True):  # one process tokenises, others wait for it
        try:
            return datasets.load_from_disk(path)
        except (OSError, ValueError, KeyError):  # missing, damaged, or its writer was killed
            shutil.rmtree(path, ignore_errors=True)
            datasets.disable_progress_bars()
            tokenize(frame, task, tokenizer, max_length).save_to_disk(path)
            core.no_truncation()  # a checkpoint saves the tokenizer: the same with kept tokens
            return datasets.load_from_disk(path)


def collator(tokenizer: PreTrainedTokenizerBase, train: Train) -> DataCollatorWithPadding:
    """Pad each batch to its longest row; with tensor cores, to the next multiple of 8 tokens."""
    tensor_cores = torch.cuda.is_available() and (train.precision != "fp32" or bool(train.tf32))
    return DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if tensor_cores else None)


def lengths(rows: Dataset) -> np.ndarray:
    """Return each row's number of tokens, (n,)."""
    return pc.list_value_length(rows.with_format("arrow")[:]["input_ids"]).to_numpy()


class LengthGrouped(LengthGroupedSampler):
    """Rows in a random order that puts rows of similar length into one batch.

    The rule is transformers'; here the order depends on seed and epoch alone, so that a resumed run
    and any number of processes see the same batches. transformers' own option would also shuffle
    the rows of an evaluation.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int):
        super().__init__(batch_size, lengths=lengths.tolist())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; accelerate calls this before each."""
        self.generator = torch.Generator().manual_seed(self.seed + epoch)


def longest_first(rows: Dataset, metrics: Metrics) -> tuple[Dataset, Metrics]:
    """Return ``rows`` sorted by length, and ``metrics`` that sees them in their old order again.

    Rows of equal length need no padding, and if memory is short, the first batch shows it.
    """
    order = np.argsort(-lengths(rows), kind="stable")
    back = np.argsort(order)

    def restored(evaluation: EvalPrediction) -> dict[str, float]:
        outputs, labels = evaluation.predictions, evaluation.label_ids
        outputs = outputs[0] if isinstance(outputs, tuple) else outputs  # (n, num_labels)
        return metrics(EvalPrediction(predictions=outputs[back], label_ids=labels[back]))

    return rows.select(order), restored


def build_trainer(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, train_set: Dataset, eval_set: Dataset,
    config: RunConfig, steps: int, recorder: Recorder, driver: Any, work: Path, progress: bool,
) -> Trainer:  # fmt: skip
    """Return a Trainer for ``steps`` optimiser steps that writes checkpoints under ``work``."""
    resumable = driver is None or hasattr(driver, "training_state")
    arguments = training_arguments(config, steps, work, progress, resumable)
    if arguments.world_size != world_size():  # else every process would train on its own
        raise RuntimeError(
            f"{world_size()} processes were launched, but transformers joined "
            f"{arguments.world_size}: launch with torchrun or accelerate launch --multi_gpu"
        )
    eval_set, metrics = longest_first(eval_set, recorder.compute_metrics)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=train_set,
        eval_dataset=eval_set,
        processing_class=tokenizer,
        data_collator=collator(tokenizer, config.train),
        compute_metrics=metrics,
        optimizers=(build_optimizer(model, config), None),
        # The recorder comes last: what it writes into a checkpoint says that it is whole.
        callbacks=[*([] if driver is None else [Lora2Callback(driver=driver)]), recorder],
    )
    if config.train.group_by_length:
        sampler = LengthGrouped(lengths(train_set), config.train.batch_size, config.seed)
        trainer._get_train_sampler = lambda *_: sampler
    # The Trainer assumes that a forward with **kwargs scales its loss by num_items_in_batch.
    # Sequence classifiers average over their own batch: leave the scaling to the Trainer.
    trainer.model_accepts_loss_kwargs = False
    trainer.remove_callback(PrinterCallback)  # the recorder keeps what it would print
    # It walks all modules at every step for a count of operations that nothing here reads.
    trainer.floating_point_ops = lambda inputs: 0
    return trainer


def training_arguments(
    config: RunConfig, steps: int, work: Path, progress: bool, resumable: bool = True
) -> TrainingArguments:
    """Translate our keys into transformers' arguments for this machine and process count."""
    train = config.train
    processes = world_size()
    per_process = train.batch_size // processes
    # A checkpoint right after an evaluation, where the mean training loss starts again: a resumed
    # run logs the same one.
    save_steps = math.ceil((train.save_steps or steps) / train.eval_steps) * train.eval_steps
    micro = train.micro_batch_size or per_process
    if "tensorboard" in (train.report_to or ()):  # else it would write into the work folder
        folder = Path(config.results.dir) / "tracking" / run_name(config)
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder)
    return TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=per_process // micro,
        per_device_eval_batch_size=train.eval_batch_size,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.lr_scheduler,
        warmup_steps=train.warmup_steps or train.warmup_ratio,
        max_grad_norm=train.max_grad_norm or 0.0,
        eval_strategy="steps",
        eval_steps=train.eval_steps,
        logging_steps=train.eval_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps" if train.save_steps and resumable else "no",
        save_steps=save_steps,
        bf16=train.precision == "bf16",
        fp16=train.precision == "fp16",
        seed=config.seed,
        data_seed=config.seed,
        report_to=train.report_to or "none",
        run_name=run_name(config),
        disable_tqdm=not progress,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        # Without it transformers looks for GPUs only: it leaves processes unconnected, and refuses
        # bfloat16 on a processor that has it.
        use_cpu=(processes > 1 or train.precision == "bf16") and not torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
    )


def build_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.AdamW:
    """Return AdamW with transformers' defaults; no decay for biases and LayerNorm.

    The head has a rate of its own where ``train.head_learning_rate`` says so.
    """
    groups = list(parameter_groups(model, config))
    if isinstance(config.method, Lora2) and config.method.lambda_lr_ratio is not None:
        groups = lambda_groups(model, groups, config.method.lambda_lr_ratio)
    gpu = torch.cuda.is_available()
    return torch.optim.AdamW(groups, lr=config.train.learning_rate, fused=gpu, foreach=not gpu)


def parameter_groups(model: nn.Module, config: RunConfig) -> Iterable[dict[str, Any]]:
    """Yield optimiser groups of the trainable parameters: (encoder, head) x (decay, none)."""
    train, groups = config.train, dict[tuple[bool, bool], list[nn.Parameter]]()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = not (name.endswith("bias") or "LayerNorm" in name or "layer_norm" in name)
            key = (in_head(name, config.backbone.head_modules), decays)
            groups.setdefault(key, []).append(parameter)
    for (head, decays), members in groups.items():
        rate = (head and train.head_learning_rate) or train.learning_rate
        yield {"params": members, "lr": rate, "weight_decay": train.weight_decay * decays}
