"""Two processes give the numbers of one at the same effective batch size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tests.experiment.conftest import TINY

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_two_processes_equal_one(do_run, tmp_path):
    words = ("task=rte", "method=lora2", "method.init_std=0.3", "train.cls_dropout=0")
    alone = do_run(*words)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2"]
    command += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    command += [
        "scripts/run_glue.py",
        "backbone=embedded",
        *words,
        *TINY,
        f"results.dir={tmp_path}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name == alone.name
    row = pd.read_csv(folder / "metrics.csv").iloc[0]
    assert (row["processes"], row["micro_batch_size"], row["batch_size"]) == (2, 4, 8)
    one, two = (load_file(next((f / "adapter").glob("*.safetensors"))) for f in (alone, folder))
    for key in one:  # sums in another order; Adam's first steps make the most of the difference
        torch.testing.assert_close(one[key].float(), two[key].float(), rtol=1e-3, atol=2e-4)
    ranks = [(f / "ranks.csv").read_text() for f in (alone, folder)]
    assert ranks[0] == ranks[1]
