"""A table's sweep, killed by SIGKILL again and again, beside one that was left alone.

python -m tests.faults.kill_sweep --kills 50
python -m tests.faults.kill_sweep --kills 3 --into DIR table=4 tasks=mrpc rows=qk profile=embedded
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from tests.faults.compare import differences
from tests.faults.observe import doing, is_progress, is_table, is_unfinished, seen

ROOT = Path(__file__).resolve().parents[2]
TABLE_4 = ("table=4", "profile=embedded", "train.save_steps=60", "workers=2")
MOMENTS = {"start": 2, "work": 4, "write": 3}  # how often each kind is drawn
MOMENTS_WHEN_DONE = {"start": 1, "tables": 2}
VICTIMS = {"all": 3, "parent": 1, "worker": 1}
POLL_SECONDS = 0.01


@dataclasses.dataclass(frozen=True)
class Pace:
    """How long the sweep that was left alone took, in seconds."""

    start: float  # until its first checkpoint or run
    work: float  # from there to its end


@dataclasses.dataclass
class Killer:
    """Starts the sweep of ``words`` into ``folder`` and kills it at moments drawn by ``rng``."""

    words: Sequence[str]
    folder: Path
    rng: random.Random
    pace: Pace
    kills: int
    runs: int  # of the whole sweep
    at: Counter[str] = dataclasses.field(default_factory=Counter)  # what it was at when killed
    victims: Counter[str] = dataclasses.field(default_factory=Counter)
    starts: int = 0
    _kept: dict[str, bytes] = dataclasses.field(default_factory=dict)

    def until_done(self) -> str:
        """Kill ``kills`` times, then let the sweep end; return what it printed at last."""
        while self.victims.total() < self.kills:
            self._one_start()
        for _ in range(3):  # a run that lost two processes is on record as failed: tried again
            with start(self.words, self.folder) as process:
                self.starts += 1
                output = process.communicate()[0]
            self._check_kept()
            if process.returncode == 0:
                return printed(output, self.folder)
        raise AssertionError(f"the sweep never ended well: {output}")

    def _one_start(self) -> None:
        """Start once; a killed worker leaves the sweep going, so that it can be killed again."""
        before, began = seen(self.folder), time.monotonic()
        with start(self.words, self.folder) as process:
            self.starts += 1
            victim = "worker"
            while victim == "worker":
                if not self._await_moment(process, before, began):
                    output = process.communicate()[0]
                    assert process.returncode in (0, 1), output
                    self._check_kept()
                    return
                last = self.victims.total() == self.kills - 1
                victim = "all" if last else draw(self.rng, VICTIMS)
                if kill(process.pid, victim, self.rng):
                    self._count(victim, doing(self.folder, before))

    def _await_moment(self, process: subprocess.Popen, before: set[str], began: float) -> bool:
        """Wait for a moment; False where the sweep ends before it."""
        done = len(self._kept) == self.runs
        kind = draw(self.rng, MOMENTS_WHEN_DONE if done else MOMENTS)
        if kind == "start":
            # Moments of the start that have passed already come right away.
            delay = self.rng.uniform(0, 1.2 * self.pace.start) - (time.monotonic() - began)
            return alive_after(process, delay)
        changed = {
            "work": lambda: any(map(is_progress, seen(self.folder) - before)),
            "write": lambda: any(map(is_unfinished, seen(self.folder) - before)),
            "tables": lambda: any(map(is_table, seen(self.folder) - before)),
        }[kind]
        if not alive_until(process, changed):
            return False
        # Each kill in the work lets it come a share further; the last quarter finds it done.
        longest = {"work": 2.5 * self.pace.work / self.kills, "write": 0.03, "tables": 0.3}[kind]
        return alive_after(process, self.rng.uniform(0, longest))

    def _count(self, victim: str, at: str) -> None:
        self.victims[victim] += 1
        self.at[at] += 1
        self._check_kept()
        number = self.victims.total()
        print(f"kill {number}: {victim}, at {at}, {len(self._kept)} runs finished", flush=True)

    def _check_kept(self) -> None:
        """No kill may cost or alter a run that was finished."""
        found = {
            str(path.parent): (path.parent / "metrics.csv").read_bytes()
            for path in self.folder.glob("runs/[!.]*/status")
            if path.read_text() == "finished\n"
        }
        lost = [name for name, row in self._kept.items() if found.get(name) != row]
        assert not lost, f"finished runs are gone or altered: {lost}"
        self._kept = found


def start(words: Sequence[str], folder: Path) -> subprocess.Popen:
    """Start ``scripts/reproduce.py`` in a process group of its own."""
    script = ROOT / "scripts" / "reproduce.py"
    command = [sys.executable, str(script), *words, f"results.dir={folder}"]
    scratch(folder).mkdir(exist_ok=True)
    with open(folder.with_suffix(".err"), "a") as errors:
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
            env=os.environ | {"TMPDIR": str(scratch(folder))},
        )


def scratch(folder: Path) -> Path:
    """Return where the sweep of ``folder`` makes temporary files."""
    return folder.with_suffix(".tmp")


def printed(output: str, folder: Path) -> str:
    """Return the tables that a sweep printed, without its own notes and place."""
    return output.partition("finished already\n")[2].replace(str(folder), "FOLDER")


def left_alone(words: Sequence[str], folder: Path) -> tuple[str, Pace]:
    """Do the whole sweep; return what it printed and how long its parts took."""
    began = time.monotonic()
    with start(words, folder) as process:
        assert alive_until(process, lambda: any(map(is_progress, seen(folder))))
        first = time.monotonic()
        output = process.communicate()[0]
    assert process.returncode == 0, output
    return printed(output, folder), Pace(first - began, time.monotonic() - first)


def kill(parent: int, victim: str, rng: random.Random) -> bool:
    """Kill the sweep, its parent alone or one of its workers; False where there is none."""
    try:
        process = psutil.Process(parent)
        children = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return False
    workers = [one for one in children if is_worker(one)]
    if victim == "worker" and not workers:
        return False
    chosen = {"all": [process, *children], "parent": [process]}.get(victim)
    for one in chosen or [rng.choice(workers)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGKILL)
    return True


def is_worker(process: psutil.Process) -> bool:
    """Tell a living worker from other children, such as multiprocessing's resource tracker."""
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # or a zombie
        return False


def draw(rng: random.Random, weights: dict[str, int]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


def alive_after(process: subprocess.Popen, seconds: float) -> bool:
    try:
        process.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        return True
    return False


def alive_until(process: subprocess.Popen, condition: Callable[[], bool]) -> bool:
    while process.poll() is None:
        if condition():
            return True
        time.sleep(POLL_SECONDS)
    return False


def main(argv: Sequence[str] | None = None) -> int:
    """Do both sweeps, print what was done as JSON and each difference; 1 if there is any."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--into", type=Path, help="an empty folder; a temporary one if left out")
    parser.add_argument("words", nargs="*", default=TABLE_4, help="of scripts/reproduce.py")
    options = parser.parse_args(argv)
    into = options.into or Path(tempfile.mkdtemp(prefix="kill-sweep-"))
    alone, killed = into / "alone", into / "killed"
    for folder in (alone, killed):
        folder.mkdir(parents=True)
    shown, pace = left_alone(options.words, alone)
    print(f"left alone: {pace.start:.0f} s of start, {pace.work:.0f} s of work", flush=True)
    began = time.monotonic()
    rng, runs = random.Random(options.seed), len(list(alone.glob("runs/*")))
    killer = Killer(options.words, killed, rng, pace, options.kills, runs)
    shown_at_last = killer.until_done()
    left = [
        one.name for one in scratch(killed).iterdir() if not (scratch(alone) / one.name).exists()
    ]
    wrong = [*differences(alone, killed), *(f"temporary: {name}" for name in left)]
    wrong += ["what was printed"] * (shown != shown_at_last)
    report = {
        "kills": killer.victims.total(), "victims": killer.victims, "at": killer.at,
        "starts": killer.starts, "runs": runs,
        "seconds": round(time.monotonic() - began), "different": wrong,
    }  # fmt: skip
    print(json.dumps(report, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
