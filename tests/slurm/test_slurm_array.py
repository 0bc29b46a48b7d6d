"""A small table through a real Slurm; ``bash tests/slurm/run.sh`` sets one up."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("LORA2_TEST_SLURM" not in os.environ, reason="bash tests/slurm/run.sh"),
]


def _start(results: Path, steps: int) -> subprocess.Popen[str]:
    words = [
        "table=3",
        "profile=embedded",
        "tasks=mrpc",
        "rows=uv,PQ",
        f"train.max_steps={steps}",
        f"train.eval_steps={steps // 2}",
        "train.save_steps=10",
        f"results.dir={results}",
        "cluster=slurm",
        "workers=1",
        "slurm.timeout_min=20",
        "slurm.cpus_per_task=1",
    ]
    command = [sys.executable, str(ROOT / "scripts" / "reproduce.py"), *words]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _wait_for(what, seconds: float):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.2)
    raise AssertionError(f"nothing after {seconds} s")


# Slurm's warning before a time-out or a preemption, and an operator's kill: SIGTERM, which submitit
# passes over, and SIGKILL five seconds later, at which the run must not have ended.
@pytest.mark.parametrize(
    ("interrupt", "steps"),
    [(("scancel", "--signal=USR2"), 60), (("scontrol", "requeue"), 400)],
    ids=["warned", "killed"],
)
def test_an_interrupted_job_is_requeued_and_goes_on_from_its_checkpoint(tmp_path, interrupt, steps):
    process = _start(tmp_path, steps)
    whole = "work/*/checkpoint-*/recorder.npz"  # the last file of a checkpoint
    checkpoint = _wait_for(lambda: list(tmp_path.glob(whole)), 300)[0].parent
    queue = ["squeue", "--noheader", "--states=RUNNING", "--format=%A", "--array"]
    number = subprocess.run(queue, capture_output=True, text=True, check=True).stdout.split()[0]
    subprocess.run([*interrupt, number], check=True)
    shown = ["scontrol", "show", "job", number]
    _wait_for(lambda: "Restarts=1" in subprocess.check_output(shown, text=True), 60)
    assert checkpoint.parent.is_dir()
    output, _ = process.communicate(timeout=480)
    assert process.returncode == 0, output
    assert re.search(r"submitted 2 jobs", output)
    runs = pd.concat(pd.read_csv(path) for path in tmp_path.glob("runs/*/metrics.csv"))
    assert runs["status"].tolist() == ["finished"] * 2
    assert runs["steps"].tolist() == [steps, steps]
    log = next((tmp_path / "logs").glob(f"{checkpoint.parent.name}.log")).read_text()
    assert "goes on from" in log, log
    assert not list(tmp_path.glob("work/*"))
