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


STEPS = 60
# Python runs this file at its start where PYTHONPATH names its folder, in the jobs too.
HOLD = """
import os, sys, time

def hold(event, arguments):
    '''Stop for good at the second checkpoint.'''
    while event == "open" and "checkpoint-20" in str(arguments[0]):
        time.sleep(0.1)

if os.environ.get("SLURM_ARRAY_TASK_ID") == "0" and "SLURM_RESTART_COUNT" not in os.environ:
    sys.addaudithook(hold)
"""


def start(results: Path, *more: str) -> subprocess.Popen[str]:
    """Start a small table whose first job stops after a checkpoint until Slurm restarts it."""
    hooks = results / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(HOLD)
    paths = [str(hooks), *filter(None, [os.environ.get("PYTHONPATH")])]
    words = [
        "table=3",
        "profile=embedded",
        "tasks=mrpc",
        "rows=uv,PQ",
        f"train.max_steps={STEPS}",
        "train.eval_steps=10",
        "train.save_steps=10",
        f"results.dir={results}",
        "workers=1",
        *more,
    ]
    command = [sys.executable, str(ROOT / "scripts" / "reproduce.py"), *words]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(what, seconds: float):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.2)
    raise AssertionError(f"nothing after {seconds} s")


# Slurm's warning before a time-out or a preemption, and an operator's kill: SIGTERM, which submitit
# passes over, and SIGKILL five seconds later. The run waits for the test, so it has not ended.
@pytest.mark.parametrize(
    "interrupt",
    [("scancel", "--signal=USR2"), ("scontrol", "requeue")],
    ids=["warned", "killed"],
)
def test_an_interrupted_job_is_requeued_and_goes_on_from_its_checkpoint(tmp_path, interrupt):
    words = ["cluster=slurm", "slurm.timeout_min=20", "slurm.cpus_per_task=1"]
    process = start(tmp_path, *words)
    whole = "work/*/checkpoint-*/recorder.npz"  # the last file of a checkpoint
    checkpoint = wait_for(lambda: list(tmp_path.glob(whole)), 300)[0].parent
    queue = ["squeue", "--noheader", "--states=RUNNING", "--format=%i", "--array"]
    number = subprocess.run(queue, capture_output=True, text=True, check=True).stdout.split()[0]
    subprocess.run([*interrupt, number], check=True)
    output, _ = process.communicate(timeout=480)
    assert process.returncode == 0, output
    assert re.search(r"submitted 2 jobs", output)
    runs = pd.concat(pd.read_csv(path) for path in tmp_path.glob("runs/*/metrics.csv"))
    assert runs["status"].tolist() == ["finished"] * 2
    assert runs["steps"].tolist() == [STEPS, STEPS]
    log = next((tmp_path / "logs").glob(f"{checkpoint.parent.name}.log")).read_text()
    assert "resumes from" in log, log
    assert {path.name for path in tmp_path.glob("work/*")} <= {"tokens"}
