"""Table 2's times from the bench of this device (``make bench``), where there is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pandas as pd

from lora2.bench.record import RESULTS, slug
from lora2.experiment.bench_costs import Line, lines, same_encoder
from lora2.experiment.provenance import device_name
from lora2.experiment.tableplan import Job, TablePlan
from lora2.experiment.timetable import IDENTITY, paper_columns

BASES = {"lora-r8": "ratio_to_lora", "adalora-r8": "ratio_to_adalora"}


def known(
    plan: TablePlan, jobs: Sequence[Job], tell: Callable[[str], None] = print
) -> pd.DataFrame | None:
    """Return what ``timetable.measure`` would from results/bench/<device>/table2.csv.

    None where that file is not there or was not measured on this encoder in full, at this batch
    size and precision, for every task. Rows that it lacks are left out and named. ``layers`` is one
    more column.
    """
    path = RESULTS / slug(device_name()) / "table2.csv"
    own = lines(path)
    found = {(job.row, job.task): line for job in jobs if (line := _line_for(job, own))}
    rows = [row for row in plan.rows if all((row.id, task) in found for task in plan.tasks)]
    if not rows or any(row.against and row.against not in BASES for row in rows):
        return None
    tell(f"table {plan.name} from {path}: `make bench` measures it anew")
    if lacking := [row.id for row in plan.rows if row not in rows]:
        tell(f"  not in it: {', '.join(lacking)}")
    paper = {task: paper_columns(plan, rows, task) for task in plan.tasks}
    return pd.DataFrame(
        [
            {
                "table": plan.table,
                "row": row.id,
                "label": row.label,
                "task": task,
                **_measured(found[row.id, task]),
                "against": row.against or "",
                "ratio": _ratio(found[row.id, task], row.against),
                **paper[task][row.id],
                **{key: found[row.id, task][key] for key in IDENTITY},
            }
            for task in plan.tasks
            for row in rows
        ]
    )


def _line_for(job: Job, own: Sequence[Line]) -> Line | None:
    config = job.resolved.config
    wanted = {"row": job.row, "task": job.task, "batch": str(config.train.batch_size)}
    fit = (line for line in own if wanted.items() <= line.items() and same_encoder(line, config))
    return next(fit, None)


def _measured(line: Line) -> dict[str, object]:
    return {
        "backbone": line["encoder"],
        "layers": int(line["layers"]),
        **{name: float(line[name]) for name in ("seconds", "seconds_q1", "seconds_q3")},
        "steps_measured": int(line["rounds"]),
        "batch_size": int(line["batch"]),
        "tokens": float(line["tokens"]),
        "precision": line["precision"],
    }


def _ratio(line: Line, against: str | None) -> float:
    return float(line[BASES[against]] or math.nan) if against else math.nan
