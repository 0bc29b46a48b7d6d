"""transformers' Trainer, set up the same way for every method."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from lora2.callbacks import Lora2Callback
from lora2.config.schema import Lora2, RunConfig, Train
from lora2.run.batching import collator, group_by_length, longest_first
from lora2.run.methods import in_head
from lora2.run.provenance import world_size
from lora2.run.recorder import Recorder
from lora2.tuners.lora2.optimizer import lambda_groups


def build_trainer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    train_set: Dataset,
    eval_set: Dataset,
    config: RunConfig,
    steps: int,
    recorder: Recorder,
    driver: Any,
    work: Path,
    progress: bool,
) -> Trainer:
    """Return a Trainer for ``steps`` optimiser steps that writes checkpoints under ``work``.

    The learning rate, the schedule and the batch are the same code for every method; ``driver``
    (an object with the hooks of ``lora2.callbacks``, or None) is called around optimiser steps.
    """
    arguments = training_arguments(config, steps, work, progress)
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
        group_by_length(trainer, config.train.batch_size, config.seed)
    # A forward that takes **kwargs is believed to scale its loss by num_items_in_batch. Sequence
    # classifiers average over their own batch and do not: leave the scaling to the Trainer.
    trainer.model_accepts_loss_kwargs = False
    trainer.remove_callback(PrinterCallback)  # the recorder keeps what it would print
    return trainer


def training_arguments(
    config: RunConfig, steps: int, work: Path, progress: bool
) -> TrainingArguments:
    """Translate our keys into transformers' arguments for this machine and process count."""
    train = config.train
    processes = world_size()
    per_process = train.batch_size // processes
    # A checkpoint right after an evaluation: the mean training loss starts anew there anyway, so a
    # resumed run logs the same one.
    save_steps = math.ceil((train.save_steps or steps) / train.eval_steps) * train.eval_steps
    micro = train.micro_batch_size or per_process
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
        save_strategy="no" if train.save_steps is None else "steps",
        save_steps=save_steps,
        bf16=train.precision == "bf16",
        fp16=train.precision == "fp16",
        seed=config.seed,
        data_seed=config.seed,
        report_to="none",
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
    groups = list(parameter_groups(model.named_parameters(), config.train, config))
    if isinstance(config.method, Lora2) and config.method.lambda_lr_ratio is not None:
        groups = lambda_groups(model, groups, config.method.lambda_lr_ratio)
    return torch.optim.AdamW(
        groups, lr=config.train.learning_rate, fused=torch.cuda.is_available() or None
    )


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], train: Train, config: RunConfig
) -> Iterable[dict[str, Any]]:
    """Yield optimiser groups of the trainable parameters: (encoder, head) x (decay, none)."""
    head_rate = train.head_learning_rate or train.learning_rate
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        if parameter.requires_grad:
            decays = not (name.endswith("bias") or "LayerNorm" in name or "layer_norm" in name)
            key = (in_head(name, config.backbone.head_modules), decays)
            groups.setdefault(key, []).append(parameter)
    for (head, decays), members in groups.items():
        yield {
            "params": members,
            "lr": head_rate if head else train.learning_rate,
            "weight_decay": train.weight_decay if decays else 0.0,
        }
