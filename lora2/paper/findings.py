"""Recompute the paper's printed numbers and sentences.

Arithmetic is exact (Decimal, Fraction): a finding is never a binary rounding error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from statistics import mean
from typing import Literal, NamedTuple

from lora2.glue.tasks import TASKS
from lora2.paper import numbers
from lora2.paper.numbers import PAPER_COLUMNS, TASK_METRICS, Line, exact, rounded, table, texts

Verdict = Literal["agrees", "differs", "not one run", "note"]


class Finding(NamedTuple):
    """What the paper prints (in which version), what its own numbers give, and how."""

    id: str
    version: str
    where: str
    printed: str
    recomputed: str
    verdict: Verdict
    how: str


def agrees(printed: Decimal, value: Decimal) -> bool:
    """Tell whether ``value`` rounds to ``printed`` at the printed digits; ties go either way."""
    exponent = printed.as_tuple().exponent
    assert isinstance(exponent, int)  # a number, not NaN
    return abs(printed - value) <= Decimal(5).scaleb(exponent - 1)


def finding(
    id: str, recomputed: str, right: bool | Decimal | None = None, **figures: object
) -> Finding:
    """Compare what the paper prints with what its own numbers give.

    ``right`` is whether it holds, or a value that should round to the printed one; None if there is
    nothing to judge. findings.csv has the text of an id, or of its beginning, with ``figures``.
    """
    names = id.split("/")
    places = ("/".join(names[:end]) for end in range(len(names), 0, -1))
    line = next(texts()[place] for place in places if place in texts())
    if isinstance(right, Decimal):
        right = agrees(exact(line["value"]), right)
    verdict: Verdict = "note" if right is None else "agrees" if right else "differs"
    where, quote, how = (line[name].format(**figures) for name in ("where", "quote", "how"))
    version = "arXiv v1" + (line["journal"] and f"; the journal's abstract {line['journal']}")
    return Finding(id, version, where, f"{quote} {line['value']}".strip(), recomputed, verdict, how)


def row_name(line: Line) -> str:
    """Return a short name of a row of Table 1, 3 or 4, e.g. "lora r=8", "uv+UV" or "q+k"."""
    if "method" not in line:
        return next(iter(line.values()))
    letter = "k" if line["method"] == "lora2" else "r"
    return f"{line['method']} {letter}={line['rank']}" if line["rank"] else line["method"]


def row_average(line: Line) -> Decimal:
    """Return the paper's average of one printed row of Table 1, 3 or 4, unrounded."""
    cells = {key: exact(line[column]) for key, column in PAPER_COLUMNS.items() if column in line}
    return numbers.glue_average(cells, list(dict.fromkeys(task for task, _ in cells)))


def _row(method: str, rank: int) -> Line:
    return numbers.printed_row(1, {"method": method, "rank": rank})


def averages() -> Iterator[Finding]:
    """Compare every printed average with the mean of its own cells."""
    for number in (1, 3, 4):
        for line in table(number):
            printed, value, row = exact(line["avg_printed"]), row_average(line), row_name(line)
            right = agrees(printed, value)
            shown = rounded(value, 3) + ("" if right else f" ({value - printed:+.2f})")
            id = f"average/table{number}/{row}"
            yield finding(id, shown, right, number=number, row=row, printed=printed)


def leads() -> Iterator[Finding]:
    """Compare LoRA2's stated leads with those of the printed averages and of the cells."""
    for rank in (1, 8):
        for method in ("lora", "sora"):
            ours, theirs = _row("lora2", rank), _row(method, rank)
            by_print = exact(ours["avg_printed"]) - exact(theirs["avg_printed"])
            by_cells = row_average(ours) - row_average(theirs)
            shown = f"{rounded(by_print)} by printed averages, {rounded(by_cells)} by cells"
            yield finding(f"lead/{method}-at-{rank}", shown, by_cells)
    lead = exact(_row("lora2", 1)["rte_acc"]) - exact(_row("adalora", 2)["rte_acc"])
    yield finding("lead/rte-adalora", rounded(lead), lead)


def tasks_won() -> Iterator[Finding]:
    """Count the tasks in which LoRA2 is strictly above every other low-rank row of its block."""

    def score(row: tuple[str, int], task: str) -> Decimal:
        return mean(exact(_row(*row)[PAPER_COLUMNS[task, metric]]) for metric in TASK_METRICS[task])

    blocks = {k: [("adalora", max(k, 2)), ("lora", k), ("sora", k)] for k in (1, 8)}
    won = {
        k: sum(all(score(("lora2", k), t) > score(row, t) for row in rows) for t in TASK_METRICS)
        for k, rows in blocks.items()
    }
    shown = f"first in {won[1]} of 8 tasks at k=1 and {won[8]} of 8 at k=8"
    yield finding("text/most-tasks", shown, sum(won.values()) > 8)
    ours, theirs = row_average(_row("lora2", 1)), {m: row_average(_row(m, r)) for m, r in blocks[8]}
    beaten = [method for method, value in theirs.items() if ours > value]
    shown = f"{rounded(ours)} is above {len(beaten)} of 3 baselines ({', '.join(beaten)})"
    text = ", ".join(f"{method} r=8 {rounded(value)}" for method, value in theirs.items())
    yield finding("text/k1-over-r8", shown, len(beaten) == 3, averages=text)


def ablations() -> Iterator[Finding]:
    """Check what Sections 4.4 and 4.5 say about Tables 3 and 4."""
    third, fourth = ({row_name(line): row_average(line) for line in table(n)} for n in (3, 4))
    every, stated = third["uv+UV+PQ"], {id: line["value"] for id, line in texts().items()}
    gaps = {name: every - value for name, value in third.items() if name != "uv+UV+PQ"}
    near = sum(agrees(exact(stated["text/orth-lead"]), gap) for gap in gaps.values())
    shown = ", ".join(f"{rounded(gap)} over {name}" for name, gap in gaps.items())
    yield finding("text/orth-lead", shown, near == len(gaps), near=near, others=len(gaps))
    least = min(third.values())
    worst = [name for name, value in third.items() if value == least]
    shown = f"lowest average: {' and '.join(worst)}, {rounded(least, 4)}"
    yield finding("text/orth-worst", shown, worst == ["UV"])
    lead = fourth.pop("all") - max(fourth.values())
    right = lead > exact(stated["text/modules-lead"])
    yield finding("text/modules-lead", f"{rounded(lead)} over the next best", right)


def method_section() -> Iterator[Finding]:
    """Check where settings are printed, and from how many evaluations a result was picked."""
    no_settings = ("source", "backbone", "method", "task")
    settings = [column for column in numbers.hyperparameters()[0] if column not in no_settings]
    columns = [column for column in table(5)[0] if column not in ("task", "metric")]
    printed = [name for name in settings if name in columns]
    shown = f"{len(printed)} of {len(settings)} settings; its columns: {', '.join(columns)}"
    yield finding("text/appendix", shown, len(printed) == len(settings))
    counts = {}
    for line in numbers.hyperparameters():
        if line["source"] == "LoRA2 public scripts":
            # MRPC: 3,668 pairs are 115 batches of 32; 30 epochs, evaluated every 300 steps: 11.
            batches = math.ceil(TASKS[line["task"]].rows["train"] / int(line["batch_size"]))
            counts[line["task"]] = batches * int(line["epochs"]) // int(line["eval_steps"])
    least, most = (pick(counts, key=counts.__getitem__) for pick in (min, max))
    shown = f"the best of {counts[least]} ({least}) to {counts[most]} ({most}) evaluations"
    yield finding("text/selection", shown)


def times() -> Iterator[Finding]:
    """Check Table 2's caption, and how much longer a LoRA2 step takes than an AdaLoRA step."""
    lines = table(2)
    adalora, lora2 = (mean(exact(line[f"{method}_s_per_it"]) for line in lines)
                      for method in ("adalora", "lora2"))  # fmt: skip
    shown = f"{rounded(lora2 / adalora, 3)} = {rounded(lora2, 3)} / {rounded(adalora, 3)} s"
    yield finding("table2/ratio", shown, n=len(lines))
    right = len(lines) == int(texts()["table2/caption"]["value"])
    yield finding("table2/caption", f"{len(lines)} datasets, seconds per iteration", right)


def same_run_twice() -> Iterator[Finding]:
    """Compare LoRA2 with k=1 on all matrices with all constraints in Tables 1, 3 and 4."""
    first = _row("lora2", 1)
    for number, name in ((3, "uv+UV+PQ"), (4, "all")):
        other = next(line for line in table(number) if row_name(line) == name)
        shared = [column for column in PAPER_COLUMNS.values() if column in other]
        same = sum(exact(first[column]) == exact(other[column]) for column in shared)
        cells, id = len(shared), f"repeated/table{number}"
        shown = f"{same} of {cells} equal to Table 1, LoRA2 k=1"
        yield finding(id, shown, same == cells, number=number, row=name, cells=cells)


# The granularity test (Brown and Heathers' GRIM, 2017, applied to accuracies): an accuracy over
# n examples is a multiple of 100/n. A printed value that no multiple gives, rounded to its two
# decimals, is a mean over runs or was measured on other data.

HALF = Fraction(1, 200)  # half of the last printed digit, 0.01


class Accuracy(NamedTuple):
    """One printed accuracy, in percent over ``n`` examples. Table 5 rounds most of these sizes."""

    number: int  # of the table
    row: str
    column: str
    printed: str
    n: int

    @property
    def one_run(self) -> bool:
        return bool(correct_counts(self.printed, self.n))


def accuracies() -> list[Accuracy]:
    """Return every accuracy printed in Tables 1, 3 and 4."""
    sizes = {
        column: TASKS[task].rows["_".join(["validation", *metric.split("_")[:-1]])]  # MNLI has two
        for (task, metric), column in PAPER_COLUMNS.items()
        if metric.endswith("accuracy")
    }
    return [
        Accuracy(number, row_name(line), column, line[column], n)
        for number in (1, 3, 4)
        for line in table(number)
        for column, n in sizes.items()
        if column in line
    ]


def correct_counts(printed: str, n: int, runs: int = 1) -> range:
    """Return how many of ``n * runs`` answers can have been right, ties rounded either way."""
    value, unit = Fraction(printed), Fraction(100, n * runs)
    return range(math.ceil((value - HALF) / unit), math.floor((value + HALF) / unit) + 1)


def by_truncation(printed: str, n: int) -> range:
    """Return how many of ``n`` can have been right if the value was cut off, not rounded."""
    value, unit = Fraction(printed), Fraction(100, n)
    return range(math.ceil(value / unit), math.ceil((value + 2 * HALF) / unit))


def fewest_runs(printed: str, n: int) -> int | None:
    """Return the smallest number of runs whose mean can be ``printed``; None above 100."""
    return next((runs for runs in range(1, 101) if correct_counts(printed, n, runs)), None)


def kinds_of_rows() -> Iterator[Finding]:
    """Compare rows that can be single runs with rows that cannot; name a cell printed twice."""
    small = [c for c in accuracies() if c.number == 1 and c.column in ("rte_acc", "mrpc_acc")]
    ours = [cell.one_run for cell in small if cell.row.startswith(("lora2", "adalora"))]
    rest = [cell.one_run for cell in small if not cell.row.startswith(("lora2", "adalora"))]
    shown = f"LoRA2 and AdaLoRA: {sum(ours)} of {len(ours)} cells can be one run; "
    shown += f"the other rows: {sum(rest)} of {len(rest)}"
    yield finding("grim/kinds", shown)
    qnli = {"ours": _row("lora2", 8)["qnli_acc"], "theirs": _row("sora", 8)["qnli_acc"]}
    yield finding("repeated/qnli", "equal" if len(set(qnli.values())) == 1 else "not equal", **qnli)


def granularity() -> Iterator[Finding]:
    """Name every accuracy that cannot be one run on the full validation set."""
    for cell in accuracies():
        if cell.one_run:
            continue
        below = int(exact(cell.printed) * cell.n / 100)
        around = " and ".join(rounded(Decimal(100) * m / cell.n, 3) for m in (below, below + 1))
        cut = " rounds to it, but one cut off after two decimals gives it"
        cut = cut if by_truncation(cell.printed, cell.n) else ""
        runs = fewest_runs(cell.printed, cell.n)
        id = f"grim/table{cell.number}/{cell.row}/{cell.column}"
        result = finding(id, f"next to {around}", cut=cut, runs=runs, **cell._asdict())
        yield result._replace(verdict="not one run")
