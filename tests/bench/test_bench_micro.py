"""A part that cannot stand alone is measured as what a step takes with it, less one without."""

from __future__ import annotations

import csv

import pytest
import torch

from lora2.bench import cli, micro, scaling
from lora2.bench.methods import METHODS
from lora2.bench.micro import Matrices, Part, cost, regulariser
from lora2.bench.record import times
from lora2.bench.shape import Shape


@pytest.fixture
def base():
    torch.manual_seed(0)
    return Matrices(2, 64)


def test_layers_share_the_memory_of_their_weights_and_adapters_have_their_own(base):
    first, second = base.encoder["layer"]
    for one, two in zip(first.parameters(), second.parameters(), strict=True):
        assert one is not two and one.data_ptr() == two.data_ptr()
    adapted = micro.prepare(base, METHODS["lora2-k8"])[0]
    own = {p.data_ptr() for n, p in adapted.named_parameters() if "lora2_" in n}
    assert len(own) == 12 * 5


@pytest.mark.parametrize("row", micro.REGULARIZED)
def test_only_a_loss_has_the_regulariser_in_it(base, row):
    adapted = micro.prepare(base, METHODS[row])[0].train().base_model
    penalised, plain = adapted(torch.ones(1, 1, 64), labels=True), adapted(torch.ones(1, 1, 64))
    assert penalised.loss > plain.logits + 0.1  # nothing is dropped out: it is the penalty
    assert plain.loss is None


def test_a_regulariser_leaves_no_gradient_for_the_next_round(base, monkeypatch):
    kept = []
    real = micro.prepare
    monkeypatch.setattr(micro, "prepare", lambda *a: kept.append(real(*a)) or kept[-1])
    part = regulariser(base, METHODS["lora2-k8"])
    part.action(0)
    part.without(0)
    assert all(p.grad is None for p in kept[0][0].parameters())


def test_time_and_counts_are_differences_of_the_same_round(monkeypatch):
    x, order = torch.ones(3), []
    taken = {"adalora-r8": [5.0, 9.0, 7.0], "adalora-r8, without": [4.0, 4.0, 5.0]}
    taken |= {"own": [2.0, 2.5, 3.0], "own, without": [1.0, 3.0, 2.0]}

    def interleave(actions, device, rounds, warm_up):
        order.extend(actions)
        return {name: taken[name] for name in actions}

    monkeypatch.setattr(micro, "interleave", interleave)
    parts = {
        "adalora-r8": Part(lambda _: [x + 1, x * 2, x.sum().item()], lambda _: x + 1),
        "own": Part(lambda _: [x + 1, x * 2], lambda _: x + 1),
    }
    found = cost(parts, "cpu", 3, 0)
    assert order == ["adalora-r8", "own", "adalora-r8, without", "own, without"]
    base, own = found["adalora-r8"], found["own"]
    assert (base["seconds"], own["seconds"]) == (2.0, 1.0)  # of 1, 5, 2 and of 1, -0.5, 1
    assert (base["kernels"], base["syncs"], own["kernels"], own["syncs"]) == (3, 1, 1, 0)
    assert own["ratio_to_adalora"] == 0.5 and own["ratio_to_lora"] == ""


@pytest.fixture
def precisions(monkeypatch):
    """What each forward pass of the matrices ran in."""
    seen = []
    real = Matrices.forward

    def forward(self, *args, **kwargs):
        on = torch.is_autocast_enabled("cpu")
        seen.append(torch.get_autocast_dtype("cpu") if on else torch.float32)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Matrices, "forward", forward)
    return seen


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_parts_run_in_the_precision_that_their_rows_say(precision, precisions, tmp_path):
    words = ["--only=micro", "--device=cpu", "--width=64", "--batch=2", "--tokens=4", "--rounds=1"]
    words += ["--warm-up=0", f"--precision={precision}", f"--out={tmp_path}"]
    assert cli.main(words) == 0
    (path,) = tmp_path.glob("cpu*/micro.csv")
    with open(path, newline="") as file:
        assert {row["precision"] for row in csv.DictReader(file)} == {precision}
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert set(precisions) == {kind}


def test_parts_beside_scaled_steps_run_in_their_precision(precisions):
    shape = Shape("minilm", None, 64, 2, 4, "bf16", "cpu")
    rows = scaling._part_rows(shape, 1, 1, 0)
    assert {row["precision"] for row in rows} == {"bf16"}
    assert set(precisions) == {torch.bfloat16}


def test_a_difference_lost_in_noise_has_no_ratio():
    assert times([-1.0], {"base": [2.0]}, by_round=False)["ratio_to_base"] == ""
    assert times([1.0], {"base": [0.0]}, by_round=False)["ratio_to_base"] == ""
    assert times([1.0, 9.0, 3.0], {"base": [1.0, 2.0, 6.0]}, by_round=False)["ratio_to_base"] == 1.5
    assert times([1.0, 9.0, 3.0], {"base": [1.0, 2.0, 6.0]})["ratio_to_base"] == 1.0
