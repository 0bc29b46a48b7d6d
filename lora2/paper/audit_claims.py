"""The audit of what the paper's text says about its tables."""

from __future__ import annotations

import math
from decimal import Decimal

import pandas as pd

from lora2.glue.tasks import TASKS
from lora2.paper import numbers as paper_tables
from lora2.paper.audit_tables import row_average
from lora2.paper.finding import Finding, agrees, exact, rounded, verdict


def _row(method: str, rank: int) -> pd.Series:
    frame = paper_tables.table(1)
    return frame[(frame["method"] == method) & (frame["rank"] == rank)].iloc[0]


def leads() -> list[Finding]:
    """LoRA2's lead over LoRA and SoRA: as stated, by printed averages, by the cells."""
    found = []
    for rank in (1, 8):
        for method in ("lora", "sora"):
            claim = paper_tables.claims().loc[f"{method}-at-{rank}"]
            ours, theirs = _row("lora2", rank), _row(method, rank)
            by_print = exact(ours["avg_printed"]) - exact(theirs["avg_printed"])
            by_cells = row_average(1, ours) - row_average(1, theirs)
            found.append(
                Finding(
                    f"lead/{method}-at-{rank}",
                    claim["where"],
                    f"{claim['quote']} {claim['value']}",
                    f"{rounded(by_print)} by printed averages, {rounded(by_cells)} by cells",
                    verdict(exact(claim["value"]), by_cells),
                    f"Table 1 Avg, LoRA2 k={rank} minus {method} r={rank}; then both recomputed",
                )
            )
    return found


def rte_lead() -> list[Finding]:
    """The one lead the text gives for a single task."""
    claim = paper_tables.claims().loc["rte-adalora"]
    value = exact(_row("lora2", 1)["rte_acc"]) - exact(_row("adalora", 2)["rte_acc"])
    return [
        Finding(
            "lead/rte-adalora",
            claim["where"],
            f"{claim['quote']}: {claim['value']}",
            rounded(value),
            verdict(exact(claim["value"]), value),
            "Table 1 RTE, LoRA2 k=1 minus AdaLoRA r=2",
        )
    ]


def _task_score(record: pd.Series, task: str) -> Decimal:
    cells = [
        exact(record[column])
        for (name, _), column in paper_tables.PAPER_COLUMNS.items()
        if name == task
    ]
    return sum(cells, Decimal(0)) / len(cells)


def tasks_won() -> list[Finding]:
    """In how many tasks LoRA2 is strictly above every other low-rank method of its block."""
    blocks = {1: [("adalora", 2), ("lora", 1), ("sora", 1)]}
    blocks[8] = [("adalora", 8), ("lora", 8), ("sora", 8)]
    won = {
        rank: sum(
            all(_task_score(_row("lora2", rank), t) > _task_score(_row(*b), t) for b in rivals)
            for t in paper_tables.TASK_METRICS
        )
        for rank, rivals in blocks.items()
    }
    of = len(paper_tables.TASK_METRICS) * len(won)
    claim = paper_tables.claims().loc["most-tasks"]
    k1 = row_average(1, _row("lora2", 1))
    beaten = [m for m, r in blocks[8] if k1 > row_average(1, _row(m, r))]
    better = paper_tables.claims().loc["k1-over-r8"]
    return [
        Finding(
            "text/most-tasks",
            claim["where"],
            claim["quote"],
            f"first in {won[1]} of 8 tasks at k=1 and {won[8]} of 8 at k=8",
            "agrees" if 2 * sum(won.values()) > of else "differs",
            "Table 1, LoRA2 strictly above AdaLoRA, LoRA and SoRA of its block",
        ),
        Finding(
            "text/k1-over-r8",
            better["where"],
            better["quote"],
            f"{rounded(k1)} is above {len(beaten)} of 3 baselines ({', '.join(beaten)})",
            "agrees" if len(beaten) == len(blocks[8]) else "differs",
            "averages recomputed: "
            + ", ".join(f"{m} r={r} {rounded(row_average(1, _row(m, r)))}" for m, r in blocks[8]),
        ),
    ]


def ablations() -> list[Finding]:
    """What Sections 4.4 and 4.5 say about Tables 3 and 4."""
    claims = paper_tables.claims()
    third = {r["orthogonality"]: row_average(3, r) for _, r in paper_tables.table(3).iterrows()}
    fourth = {r["modules"]: row_average(4, r) for _, r in paper_tables.table(4).iterrows()}
    gaps = {name: third["uv+UV+PQ"] - v for name, v in third.items() if name != "uv+UV+PQ"}
    stated = exact(claims.loc["orth-lead", "value"])
    near = [gap for gap in gaps.values() if agrees(stated, gap)]
    worst = [name for name, v in third.items() if v == min(third.values())]
    lead = fourth["all"] - max(v for name, v in fourth.items() if name != "all")
    return [
        Finding(
            "text/orth-lead",
            claims.loc["orth-lead", "where"],
            f"{claims.loc['orth-lead', 'quote']} {claims.loc['orth-lead', 'value']}",
            ", ".join(f"{rounded(gap)} over {name}" for name, gap in gaps.items()),
            "agrees" if len(near) == len(gaps) else "differs",
            f"Table 3, row averages recomputed; true of {len(near)} of the {len(gaps)} other rows",
        ),
        Finding(
            "text/orth-worst",
            claims.loc["orth-worst", "where"],
            claims.loc["orth-worst", "quote"],
            f"lowest average: {' and '.join(worst)}, {rounded(min(third.values()), 4)}",
            "agrees" if worst == ["UV"] else "differs",
            "Table 3, row averages recomputed without rounding",
        ),
        Finding(
            "text/modules-lead",
            claims.loc["modules-lead", "where"],
            f"{claims.loc['modules-lead', 'quote']} {claims.loc['modules-lead', 'value']:g}",
            f"{rounded(lead)} over the next best",
            "agrees" if lead > exact(claims.loc["modules-lead", "value"]) else "differs",
            "Table 4, row averages recomputed",
        ),
    ]


def method_section() -> list[Finding]:
    """Where the settings are, and how many evaluations a result was picked from."""
    claims, scripts = paper_tables.claims(), paper_tables.hyperparameters()
    settings = [c for c in scripts if c not in ("source", "backbone", "method", "task")]
    columns = [c for c in paper_tables.table(5) if c not in ("task", "metric")]
    printed = [name for name in settings if name in columns]
    ours = scripts[scripts["source"] == "LoRA2 public scripts"]
    counts = {str(row["task"]): _evaluations(row) for _, row in ours.iterrows()}
    least, most = (pick(counts, key=lambda t: counts[t]) for pick in (min, max))
    return [
        Finding(
            "text/appendix",
            claims.loc["hyperparameters", "where"],
            claims.loc["hyperparameters", "quote"],
            f"{len(printed)} of {len(settings)} settings; its columns: {', '.join(columns)}",
            "agrees" if len(printed) == len(settings) else "differs",
            "Appendix A is Table 5; compared with the settings that the public scripts give",
        ),
        Finding(
            "text/selection",
            claims.loc["optimal-values", "where"],
            claims.loc["optimal-values", "quote"],
            f"the best of {counts[least]} ({least}) to {counts[most]} ({most}) evaluations",
            "note",
            "of the validation set that is reported itself: steps by the public scripts' epochs "
            "and batch, divided by their eval_steps",
        ),
    ]


def _evaluations(row: pd.Series) -> int:
    """MRPC: 3,668 pairs are 115 batches of 32; 30 epochs, evaluated every 300 steps: 11."""
    steps = math.ceil(TASKS[row["task"]].rows["train"] / row["batch_size"]) * row["epochs"]
    return int(steps // row["eval_steps"])
