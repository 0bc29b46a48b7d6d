"""What a bench reached stands beside what it should; what was not measured is said to be so."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pandas as pd
import pytest

from lora2.report.bench import RESULTS, measured, read
from lora2.report.bench_targets import TARGETS, render, value_of

ROOT = Path(__file__).resolve().parents[2]


def bench(device: str, kernels: int = 72, ratio: float = 1.04) -> dict[str, pd.DataFrame]:
    micro = [
        {"part": part, "row": row, "matrices": matrices, "kernels": n + (row == "lora2-k1"),
         "syncs": 0, "device": device}
        for part, n in (("regulariser", kernels), ("allocator", 20))
        for row in ("lora2-k1", "lora2-k8")
        for matrices in (72, 144)
    ]  # fmt: skip
    step = [
        {"phase": phase, "encoder": encoder, "row": row, "kernels": n, "ratio_to_lora": r,
         "ratio_to_adalora": 0.85, "ratio_to_base": 1.02, "memory_ratio_to_lora": r / 2,
         "layers": 3, "batch": 4, "tokens": 48.0, "precision": "bf16", "device": device}
        for encoder, r in (("deberta-v3-base", ratio), ("roberta-large", 1.2), ("minilm", 9.0))
        for phase, row, n in (
            ("train", "lora2-k8", 700), ("train", "full", 9999), ("inference", "base", 170),
            ("inference", "merged", 170), ("inference", "unmerged", 240),
        )
    ]  # fmt: skip
    return {"micro": pd.DataFrame(micro), "step": pd.DataFrame(step)}


def test_each_device_has_its_limits_and_only_the_base_encoder_is_judged():
    text = render([bench("cpu x86_64 2 threads"), bench("GPU", kernels=151, ratio=1.06)])
    other = "the same, roberta-large, not judged"
    assert f"| Target | At most | GPU | {other} | cpu x86\\_64 2 threads | {other} |" in text
    assert "time to LoRA r=8 | 1.05 | 1.060 (missed) | 1.200 | 1.040 | 1.200 |" in text
    assert "memory to LoRA r=8 | 1.02 | 0.530 | 0.600 | 0.520 | 0.600 |" in text
    assert "0.93 (GPU 0.8) | 0.850 (missed) | 0.850 | 0.850 | 0.850 |" in text
    assert "| Kernels of the regulariser, 72 matrices | 150 | 151 (missed) |  | 72 |  |" in text
    assert "| Kernels of the allocator, 72 matrices | 20 | 20 |  | 20 |  |" in text
    assert "kernels more than without an adapter | 0 | 0 | 0 | 0 | 0 |" in text
    assert "Judged on deberta-v3-base" in text
    size = "3 layers, 4 x 48 tokens, bf16"
    assert f"- GPU: deberta-v3-base {size}; roberta-large {size}." in text
    assert "Not measured on a GPU" not in text


def test_what_was_not_measured_is_said():
    text = render([{"micro": bench("cpu")["micro"]}])
    assert "Not measured on a GPU: none was at hand." in text
    assert "| Step of LoRA² k=8, time to LoRA r=8 | 1.05 | not measured |  |" in text
    beside = bench("cpu")
    beside["step"] = beside["step"].loc[beside["step"]["encoder"] == "roberta-large"]
    assert "time to LoRA r=8 | 1.05 | not measured | 1.200 |" in render([beside])
    assert "Not measured on a GPU" in render([])
    assert math.isnan(value_of(TARGETS[0], {}))


@pytest.mark.parametrize("device", ["cpu", "GPU"])
def test_one_kernel_more_in_merged_inference_is_a_miss(device):
    own = bench(device)
    step = own["step"]
    step.loc[(step["row"] == "merged") & (step["encoder"] == "deberta-v3-base"), "kernels"] += 1
    assert "kernels more than without an adapter | 0 | 1 (missed) | 0 |" in render([own])


def test_the_architecture_page_has_the_benchs_numbers_of_operations():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    own = pd.concat([read(folder)["micro"] for folder in measured(ROOT / RESULTS)])
    own = own.loc[(own["row"] == "lora2-k8") & (own["precision"] == "fp32")]
    for part, words in (
        ("regulariser", r"before they are split: (\d+)\s+operations"),
        ("allocator", r"for all matrices: (\d+)\s+operations a step"),
    ):
        counted = own.loc[own["part"] == part, "kernels"]
        assert set(counted) == {int(re.search(words, page)[1])}


def test_the_committed_page_is_that_of_the_committed_benches():
    found = [read(folder) for folder in measured(ROOT / RESULTS)]
    assert (ROOT / RESULTS / "targets.md").read_text(encoding="utf-8") == render(found)
