"""The audit's arithmetic inside the tables: averages, times, and rows printed twice."""

from __future__ import annotations

from decimal import Decimal
from statistics import mean

import pandas as pd

from lora2.paper import grim
from lora2.paper import numbers as paper_tables
from lora2.paper.finding import Finding, agrees, exact, rounded, verdict


def row_average(number: int, record: pd.Series) -> Decimal:
    """The paper's average of one printed row of Table 1, 3 or 4, unrounded."""
    values = {
        key: exact(record[column])
        for key, column in paper_tables.PAPER_COLUMNS.items()
        if column in record
    }
    tasks = list(dict.fromkeys(task for task, _ in values))
    return paper_tables.glue_average(values, tasks)


def averages() -> list[Finding]:
    """Every printed average against the mean of its own cells."""
    found = []
    for number in (1, 3, 4):
        for _, record in paper_tables.table(number).iterrows():
            name = grim.row_name(record)
            printed, value = exact(record["avg_printed"]), row_average(number, record)
            found.append(
                Finding(
                    f"average/table{number}/{name}",
                    f"Table {number}, {name}, Avg",
                    rounded(printed),
                    rounded(value, 3) + f" ({value - printed:+.2f})" * (not agrees(printed, value)),
                    verdict(printed, value),
                    "mean over tasks; QQP = mean of accuracy and F1, MNLI = mean of m and mm"
                    if number == 1
                    else "mean of the row's four cells",
                )
            )
    return found


def times() -> list[Finding]:
    """Table 2: its caption, and how much longer a LoRA2 step takes than an AdaLoRA step."""
    frame = paper_tables.table(2)
    adalora = mean(exact(v) for v in frame["adalora_s_per_it"])
    lora2 = mean(exact(v) for v in frame["lora2_s_per_it"])
    tasks = int(paper_tables.claims().loc["table2-caption", "value"])
    return [
        Finding(
            "table2/ratio",
            "Table 2",
            "(no ratio printed)",
            f"{rounded(lora2 / adalora, 3)} = {rounded(lora2, 3)} / {rounded(adalora, 3)} s",
            "note",
            f"means over the {len(frame)} printed tasks, LoRA2 divided by AdaLoRA, per step",
        ),
        Finding(
            "table2/caption",
            "Table 2, caption",
            f"time per epoch on {tasks} datasets",
            f"{len(frame)} datasets, seconds per iteration",
            "agrees" if len(frame) == tasks else "differs",
            "rows counted; the unit is the one printed in the table's first cell (s/it)",
        ),
    ]


def same_run_twice() -> list[Finding]:
    """LoRA2 with k=1 on all matrices and all constraints stands in Tables 1, 3 and 4."""
    one = paper_tables.table(1).query("method == 'lora2' and rank == 1").iloc[0]
    found = []
    for number, row in ((3, "uv+UV+PQ"), (4, "all")):
        frame = paper_tables.table(number)
        other = frame.loc[frame.iloc[:, 0] == row].iloc[0]
        shared = [c for c in paper_tables.PAPER_COLUMNS.values() if c in frame.columns]
        same = sum(bool(one[c] == other[c]) for c in shared)
        found.append(
            Finding(
                f"repeated/table{number}",
                f"Table {number}, {row}",
                f"{len(shared)} cells",
                f"{same} of {len(shared)} equal to Table 1, LoRA2 k=1",
                "agrees" if same == len(shared) else "differs",
                "the same configuration, compared cell by cell",
            )
        )
    return found


def kinds_of_rows() -> list[Finding]:
    """Rows that can be single runs stand beside rows that cannot, and one cell stands twice."""
    small = [c for c in grim.cells() if c.table == 1 and c.column in ("rte_acc", "mrpc_acc")]
    ours = [c for c in small if c.row.startswith(("lora2", "adalora"))]
    rest = [c for c in small if c not in ours]
    qnli = {grim.row_name(r): r["qnli_acc"] for _, r in paper_tables.table(1).iterrows()}
    return [
        Finding(
            "grim/kinds",
            "Table 1, RTE and MRPC",
            "ten rows compared as equals",
            f"LoRA2 and AdaLoRA: {sum(c.one_run for c in ours)} of {len(ours)} cells can be one "
            f"run; the other rows: {sum(c.one_run for c in rest)} of {len(rest)}",
            "note",
            "the granularity test below on the two smallest sets, which tell most",
        ),
        Finding(
            "repeated/qnli",
            "Table 1, QNLI",
            f"LoRA2 k=8 {qnli['lora2 k=8']}, SoRA r=8 {qnli['sora r=8']}",
            "equal" if qnli["lora2 k=8"] == qnli["sora r=8"] else "not equal",
            "note",
            "compared; this value is also one that no single run rounds to (see the last section)",
        ),
    ]


def granularity() -> list[Finding]:
    """Every accuracy cell that cannot be one run on the full validation set."""
    found = []
    for cell in grim.cells():
        if cell.one_run:
            continue
        below = int(exact(cell.printed) * cell.n / 100)
        around = " and ".join(rounded(Decimal(100) * m / cell.n, 3) for m in (below, below + 1))
        cut = ", though cut off instead of rounded it would be" * bool(
            grim.by_truncation(cell.printed, cell.n)
        )
        found.append(
            Finding(
                f"grim/table{cell.table}/{cell.row}/{cell.column}",
                f"Table {cell.table}, {cell.row}, {cell.column}",
                rounded(exact(cell.printed)),
                f"next to {around}",
                "not one run",
                f"no multiple of 100/{cell.n}{cut}; a mean over runs on this set needs at least "
                f"{grim.fewest_runs(cell.printed, cell.n)}",
            )
        )
    return found
