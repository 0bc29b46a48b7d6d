"""Two processes under FSDP2 train and prune LoRA2 as one process does."""

from __future__ import annotations

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from peft import get_peft_model
from torch import nn
from torch.distributed.fsdp import fully_shard

from lora2 import Lora2Config
from lora2.tuners.lora2.stacks import whole


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(2, 4, 8) / 8)

    def forward(self, x):
        return torch.einsum("td, eod -> to", x, self.w)


STEPS, ROWS, WORLD = 6, 8, 2


def train(rank, world, importance, file):
    torch.manual_seed(0)
    config = Lora2Config(
        r=4, k=2, target_modules=["0", "2"], target_parameters=["4.w"], init_weights=False,
        importance=importance, target_r=2, tfinal=2, total_step=STEPS,
    )  # fmt: skip
    layers = (nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), Experts())
    model = get_peft_model(nn.Sequential(*layers), config).double().train()
    tuner = model.base_model
    if world > 1:
        for child in tuner.model.children():
            fully_shard(child)
        fully_shard(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    share = ROWS // world
    for step in range(1, STEPS + 1):
        torch.manual_seed(step)
        x, y = torch.randn(2, ROWS, 8, dtype=torch.float64)  # the rows of all processes
        mine = slice(rank * share, (rank + 1) * share)
        loss = (model(x[mine]) - y[mine, :4]).square().mean()
        if step % 2:  # the penalty in the loss, or its gradient added by itself
            loss = loss + tuner.regularization_loss()
        loss.backward()
        tuner.before_optimizer_step(step)
        optimizer.step()
        tuner.update_and_allocate(step)
        optimizer.zero_grad()
    tuner.finish_training()
    weights = {name: whole(p).detach().clone() for name, p in model.named_parameters()}
    state = {**weights, **tuner.training_state()}
    if rank == 0:
        torch.save((state, tuner.kept_ranks()), file)


def join(rank, importance, port, file):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    train(rank, WORLD, importance, file)
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("importance", ["factored", "full"])
def test_two_processes_train_as_one(importance, tmp_path):
    train(0, 1, importance, tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(join, (importance, port, tmp_path / "two"), WORLD)
    (one, kept), (two, kept_by_two) = (torch.load(tmp_path / name) for name in ("one", "two"))
    assert kept == kept_by_two and sum(map(sum, kept.values())) == 4 * 2
    torch.testing.assert_close(two, one, rtol=1e-12, atol=1e-12)
