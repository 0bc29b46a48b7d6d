"""Limits on the operations and synchronisations of the regulariser and the allocator."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from torch import nn

from lora2.bench import step
from lora2.bench.cases import Case
from lora2.bench.counters import counting

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architecture.md"


def counted(action: Callable[[], object]) -> dict[str, int]:
    """Return how many operations and synchronisations ``action`` causes."""
    with counting("cpu") as counts:
        action()
    return {"kernels": len(counts.kernels), "syncs": len(counts.syncs)}


def part_counts(layers: int) -> dict[tuple[str, str], dict[str, int]]:
    """Count the operations of regulariser and allocator over ``layers`` x 6 matrices.

    The regulariser is the difference of a forward and backward pass with it and one without: a
    model in training adds it to the loss that it returns, never to its logits.
    """
    case = Case("roberta-large", layers, 2, 4, "fp32", "cpu")
    base, batch, rows = case.base(), case.full_batch(), {}
    inputs = {key: value for key, value in batch.items() if key != "labels"}

    def without(model: nn.Module) -> None:
        logits = model(**inputs).logits
        nn.functional.cross_entropy(logits.view(-1, 2), batch["labels"].view(-1)).backward()

    for row in ("adalora-r8", "lora2-k1", "lora2-k8"):
        stepper = step.build(base, case.run(row))
        less = counted(partial(without, stepper.model))
        stepper.optimizer.zero_grad()
        more = counted(lambda s=stepper: s.model(**batch).loss.backward())
        stepper.driver.after_optimizer_step(1)  # the first also creates the averages
        allocator = counted(lambda s=stepper: s.driver.after_optimizer_step(2))
        difference = {key: more[key] - less[key] for key in more}
        rows |= {("regulariser", row): difference, ("allocator", row): allocator}
    return rows


@pytest.fixture(scope="module")
def counts():
    """Of a tuner with 72 matrices, as in DeBERTaV3-base."""
    return part_counts(12)


def test_both_parts_are_few_operations_and_wait_for_no_value(counts):
    assert counts["allocator", "adalora-r8"]["syncs"] == 73
    for row in ("lora2-k1", "lora2-k8"):
        for part, most in (("regulariser", 75), ("allocator", 20)):
            own, theirs = counts[part, row], counts[part, "adalora-r8"]
            assert own["syncs"] == 0
            assert 0 < own["kernels"] <= min(most, theirs["kernels"] / 4)


def test_the_architecture_page_has_these_numbers(counts):
    page = PAGE.read_text(encoding="utf-8")
    for part, words in (
        ("regulariser", r"before they are split: (\d+)\s+operations"),
        ("allocator", r"for all matrices: (\d+)\s+operations a step"),
    ):
        assert counts[part, "lora2-k8"]["kernels"] == int(re.search(words, page)[1])


def test_twice_the_layers_cost_no_more(counts):
    assert part_counts(24)["regulariser", "lora2-k8"] == counts["regulariser", "lora2-k8"]
