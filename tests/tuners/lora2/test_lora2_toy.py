"""The toy problem of docs/library.md: what is left of a loss after 500 steps (-s prints it)."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from lora2 import Lora2Config, create_lora2_optimizer

WIDTH, RANK, STEPS, NORM = 32, 8, 500, 0.3


def left(config, lr: float) -> float:
    """Percent of the loss left, of a linear map that shall learn a change of rank 2."""
    torch.manual_seed(0)
    x = torch.randn(256, WIDTH)
    change = torch.randn(WIDTH, 2) @ torch.randn(2, WIDTH)
    wanted = x @ change.T * (NORM / change.norm())
    config.target_modules, config.lora_alpha = ["0"], 16
    model = get_peft_model(nn.Sequential(nn.Linear(WIDTH, WIDTH)), config)
    with torch.no_grad(), model.disable_adapter():
        wanted += model(x)

    def loss():
        return (model(x) - wanted).square().sum(1).mean()

    start = float(loss())
    if isinstance(config, LoraConfig):
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    else:
        ratio = "auto" if config.init_weights == "orthogonal" else 1.0
        kind = torch.optim.AdamW
        optimizer = create_lora2_optimizer(model, kind, lr=lr, lambda_lr_ratio=ratio)
    for _ in range(STEPS):
        optimizer.zero_grad()
        total = loss()
        if isinstance(config, Lora2Config):
            total = total + model.base_model.regularization_loss()
        total.backward()
        optimizer.step()
    return 100 * float(loss()) / start


def lora2(start, **settings):
    return Lora2Config(r=RANK, k=RANK, init_weights=start, **settings)


@pytest.mark.parametrize(
    ("name", "config", "lr", "low", "high"),
    [
        ("LoRA", lambda: LoraConfig(r=RANK), 2e-4, 0, 1),
        ("LoRA2, published start", lambda: lora2(True), 2e-4, 70, 105),
        ("LoRA2, published start", lambda: lora2(True), 5e-3, 0, 1),
        ("LoRA2, orthogonal start", lambda: lora2("orthogonal"), 2e-4, 70, 105),
        ("LoRA2, orthogonal start", lambda: lora2("orthogonal"), 1e-3, 10, 60),
        ("LoRA2, orthogonal start", lambda: lora2("orthogonal"), 5e-3, 0, 1),
        ("the same, no penalty", lambda: lora2("orthogonal", orth_reg_weight=0.0), 2e-4, 0, 30),
        ("the same, no penalty", lambda: lora2("orthogonal", orth_reg_weight=0.0), 1e-3, 0, 1),
    ],
)  # fmt: skip
def test_the_toy_of_the_page(name, config, lr, low, high):
    percent = left(config(), lr)
    print(f"{name} at {lr:g}: {percent:.2g} % of the loss is left after {STEPS} steps")
    assert low <= percent <= high
