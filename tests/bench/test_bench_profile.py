"""Operations are counted to the part they belong to, backward passes to their forward's."""

from __future__ import annotations

import collections

import pytest
import torch

from lora2.bench import profile
from lora2.bench.counters import counting
from lora2.bench.encoders import random_encoder, shaped
from lora2.bench.lengths import padded_batch
from lora2.bench.methods import METHODS
from lora2.bench.step import build


@pytest.fixture(scope="module")
def parts() -> dict[str, collections.Counter[str]]:
    """Part -> how often each operation is called in a step of LoRA2 on two layers."""
    torch.manual_seed(0)
    config = shaped("roberta-large", layers=2, width=64)
    config.vocab_size = 200
    stepper = build(random_encoder(config), METHODS["lora2-k8"])
    batch = padded_batch(torch.tensor([7, 4]), 200, 2, torch.Generator().manual_seed(0))
    profile.label_parts(stepper)
    stepper.step(batch)
    seen = profile.events(lambda: stepper.step(batch), "cpu")
    forward = profile.forward_parts(seen)
    found = collections.defaultdict(collections.Counter)
    for event in seen:
        found[profile.part_of(event, forward)][event.name] += 1
    with counting() as counts:
        stepper.step(batch)
    found["all"] = collections.Counter(counts.kernels)
    return found


def test_every_product_has_its_part(parts):
    products = {
        part: own["aten::mm"] + own["aten::addmm"] + own["aten::addmm_"]
        for part, own in parts.items()
    }
    # 12 matrices: x u and its addition to the output, two gradients each; the embeddings that the
    # first three see need none.
    assert products["adapter"] == 12 * (2 + 4) - 3
    assert products["encoder"] > 2 * 12
    assert products["encoder"] == products["all"] - products["adapter"]
    assert products["regulariser"] == products["allocator"] == products["rest"] == 0


def test_batched_products_of_the_regulariser_are_told_from_the_adapters(parts):
    assert parts["regulariser"]["aten::bmm"] == 26  # as many as the regulariser adds to a step
    assert parts["adapter"]["aten::bmm"] > 0
    assert parts["optimiser"]["aten::_fused_adamw_"] == 1
    assert parts["allocator"]["aten::sort"] == 1
    assert parts["rest"]["aten::_foreach_norm"] == 1
