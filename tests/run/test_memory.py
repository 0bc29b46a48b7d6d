"""A run's peak memory is its own."""

from __future__ import annotations

import sys

import pytest
import torch

from lora2.run.device import forget_peak_memory, peak_memory_mb


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux forgets a peak")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's memory is counted in its place")
def test_the_peak_of_an_earlier_run_is_forgotten():
    torch.ones(100 * 2**20)  # 400 MiB
    before = peak_memory_mb()
    forget_peak_memory()
    assert peak_memory_mb() < before - 200
