"""How a sweep tells where it is: one bar on a terminal, a line per run elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from lora2.sweep.worker import Outcome


class Progress:
    """Counts runs; the time left is judged by optimiser steps, since runs differ in length."""

    def __init__(self, runs: int, already: int, steps: int):
        self.runs, self.done, self.failed = runs, already, 0
        self.steps, self.steps_done = steps, 0
        self.started = time.monotonic()
        self.live = sys.stderr.isatty()
        layout = "{desc} {bar} {percentage:3.0f}% [{elapsed}<{remaining}]"
        self.bar = tqdm(total=steps, disable=not self.live, bar_format=layout, smoothing=0.0)
        self.show(0)

    def show(self, running: int) -> None:
        """Refresh the bar."""
        text = f"{self.done}/{self.runs} done, {running} running, {self.failed} failed"
        self.bar.set_description_str(text)

    def end_of(self, outcome: Outcome, steps: int, running: int) -> None:
        """Count one run of ``steps`` that has ended in any way."""
        good = outcome.state == "finished"
        self.done, self.failed = self.done + good, self.failed + (not good)
        self.steps_done += steps
        self.bar.update(steps)
        self.show(running)
        if not good or not self.live:
            why = f": {outcome.message}" if outcome.message else ""
            tqdm.write(f"{self._position()} {outcome.name} {outcome.state}{why}", file=sys.stderr)

    def note(self, text: str) -> None:
        """Print a line without breaking the bar."""
        tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        self.bar.close()

    def _position(self) -> str:
        spent = time.monotonic() - self.started
        left = spent * (self.steps - self.steps_done) / max(1, self.steps_done)
        return f"[{self.done + self.failed}/{self.runs}, {duration(left)} left]"


def duration(seconds: float) -> str:
    """Return a time as people say it: 45 s, 12 min, 3.5 h, 12 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 100 else f"{hours / 24:,.0f} days"
