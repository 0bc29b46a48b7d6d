"""Do one run from the command line. Every key, its unit and its source: configs/

python scripts/run_glue.py task=rte method=lora2 backbone=deberta-v3-base seed=6 method.k=8
python scripts/run_glue.py task=rte method=lora2 predict=true  # and RTE.tsv for the GLUE server
accelerate launch --multi_gpu --num_processes=2 scripts/run_glue.py task=mnli method=lora2

usage: python scripts/run_glue.py task=TASK method=METHOD [backbone=NAME] [predict=true] \
[key=value ...]"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from lora2.config.load import resolve
from lora2.config.problems import ConfigError
from lora2.config.schema import RunConfig, run_name
from lora2.hub import check_available
from lora2.records.files import DiskFull
from lora2.records.run_folder import hold_run, lock_file, status_of
from lora2.sweep.command import command, quiet_transformers

MAIN_PROCESS = os.environ.get("RANK", "0") == "0"
PREDICT = ("predict=true", "predict=false")  # write predictions for the GLUE server after the run


def main(argv: Sequence[str]) -> int:
    return command(argv, __doc__, do_run)


def do_run(words: Sequence[str]) -> int:
    """Print the plan, do the run, print the scores; the traceback of a failure is in its folder."""
    predict = "predict=true" in words
    resolved = resolve([word for word in words if word not in PREDICT])
    config = resolved.config
    if MAIN_PROCESS:
        print(
            f"run {run_name(config)}\n  {config.method.name} on {config.task}, "
            f"{config.backbone.name}, protocol {config.protocol}, seed {config.seed}, "
            f"{resolved.steps or '?'} steps of {config.train.batch_size}"
        )
        for note in resolved.notes:
            print(f"  {note}")
    if predict or status_of(config) != "finished":
        check_available(config.hub_needs())
    try:
        return execute(config, predict)
    except (ConfigError, DiskFull):
        raise
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


def execute(config: RunConfig, predict: bool) -> int:
    """Do the run unless another process does it, print its scores, and write predictions."""
    from lora2.run.run import run

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    quiet_transformers()
    with hold_run(config, wait=False) if MAIN_PROCESS else nullcontext(True) as held:
        if not held:
            lock = lock_file(config)
            print(f"another process is doing this run: it holds {lock}", file=sys.stderr)
            return 1
        folder = run(config, progress=MAIN_PROCESS and sys.stderr.isatty())
    if MAIN_PROCESS:
        print_result(folder)
    if MAIN_PROCESS and predict:
        from lora2.run.submission import write_predictions

        print("predictions of the last checkpoint on the test split:")
        print("\n".join(map(str, write_predictions(config))))
    return 0


def print_result(folder: Path) -> None:
    """Print the scores and counts of a finished run."""
    from lora2.records.store import read_run

    row = read_run(folder).iloc[0]
    print(
        f"{row['task']} {row['method']}: best {row['score_best']:.2f} (step {row['step_best']}), "
        f"last {row['score_last']:.2f}; adapter {row['params_adapter']:,} parameters "
        f"({row['params_kept']:,} kept), head {row['params_head']:,}; "
        f"{row['train_seconds']:.0f} s of training\n{folder}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
