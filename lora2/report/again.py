"""Did a second run of some cells give the same scores? Compares the runs of two folders.

python -m lora2.report.again results/small again
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lora2.experiment.reporting import comparable
from lora2.report import store

SCORES = ("score_best", "score_last")  # percent points
WHERE = ("commit", "device", "torch")  # what may explain a difference


def lines(first: pd.DataFrame, second: pd.DataFrame) -> tuple[list[str], bool]:
    """Return a line for each finished run of ``second``, and whether all have equal scores.

    A run's counterpart in ``first`` is the finished one of its seed and settings, wherever data
    and encoder lay. A run without one is not equal.
    """
    done = [frame.loc[frame["status"] == "finished"] for frame in (first, second)]
    known = [
        (int(run["seed"]), comparable(own), run)
        for run, own in zip(done[0].to_dict("records"), store.settings(done[0]), strict=True)
    ]
    told, equal = [], len(done[1]) > 0
    for run, own in zip(done[1].to_dict("records"), store.settings(done[1]), strict=True):
        key = int(run["seed"]), comparable(own)
        same = next((one for seed, other, one in known if (seed, other) == key), None)
        equal &= same is not None and all(same[name] == run[name] for name in SCORES)
        told.append(_line(run, same))
    return told, equal


def _line(run: dict, same: dict | None) -> str:
    if same is None:
        return f"{run['run']}: no run of its settings and seed to compare with"
    parts = [
        f"{name.removeprefix('score_')} {same[name]:.4f} and {run[name]:.4f}"
        f"{'' if same[name] == run[name] else ' DIFFER'}"
        for name in SCORES
    ]
    parts += [f"{key} {same[key]} and {run[key]}" for key in WHERE if same[key] != run[key]]
    return f"{run['run']}: {', '.join(parts)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the comparison; 0 if all scores are equal, 1 if not, 2 if there is nothing to read."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("first", type=Path, help="results folder, e.g. results/small")
    parser.add_argument("second", type=Path, help="results folder of the second run")
    args = parser.parse_args(argv)
    try:
        told, equal = lines(store.read(args.first), store.read(args.second))
    except store.StoreError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(told) or f"no finished run in {args.second}")
    return int(not equal)


if __name__ == "__main__":
    sys.exit(main())
