"""A tiny adapted classifier, and transformers' Trainer for a few steps of it on a processor."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import (
    RobertaConfig,
    RobertaForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from lora2 import Lora2Config

STEPS = 12


def build(**settings) -> PeftModel:
    torch.manual_seed(0)
    model = RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=40,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=12,
            max_position_embeddings=20,
        )
    )
    # Its loss is a mean per batch, not per accumulated batch, although its forward takes **kwargs.
    model.accepts_loss_kwargs = False
    defaults = {
        "r": 4,
        "k": 2,
        "target_modules": ["query", "value", "intermediate.dense"],
        "target_r": 1,
        "tinit": 2,
        "tfinal": 3,
        "init_std": 0.2,
        "lora_dropout": 0.1,
        "task_type": "SEQ_CLS",
    }
    return get_peft_model(model, Lora2Config(**{**defaults, **settings}))


def examples(count: int = 24) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 40, (count, 6), generator=generator)
    return [{"input_ids": row, "labels": int(row.sum() % 2)} for row in ids]


def make_trainer(
    model: nn.Module,
    folder: Path,
    *callbacks: TrainerCallback,
    optimizer: torch.optim.Optimizer | None = None,
    **settings,
) -> Trainer:
    defaults = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 2e-2,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
    }
    arguments = TrainingArguments(output_dir=str(folder), **{**defaults, **settings})
    data = examples()
    return Trainer(
        model,
        arguments,
        train_dataset=data,
        eval_dataset=data,
        callbacks=[*callbacks],
        optimizers=(optimizer, None),
    )


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step
