"""Table 5: the sizes of the data sets, the official ones beside the paper's.

python -m lora2.paper.sizes
"""

from __future__ import annotations

from pathlib import Path

from lora2.glue.tasks import TASKS
from lora2.paper import numbers as paper_tables
from lora2.records.store import write_atomically

PATH = Path(__file__).resolve().parents[2] / "results" / "paper" / "table5.md"


def agrees(printed: str, rows: int) -> bool:
    """Tell whether ``rows`` rounds to a printed size such as ``8.5k``, ``67k`` or ``1043``."""
    if not printed.endswith("k"):
        return int(printed) == rows
    decimals = len(printed[:-1].partition(".")[2])
    return round(rows / 1000, decimals) == float(printed[:-1])


def render() -> str:
    """Return the table as Markdown; test sets are not used here and not counted."""
    lines = [
        "# Table 5: sizes of the data sets",
        "",
        "Rows of `nyu-mll/glue`, which every run from the hub or a folder is checked against,",
        "beside the paper's printed sizes. Made by `python -m lora2.paper.sizes`.",
        "",
        "| task | train | paper | validation | paper | labels | paper |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for printed in paper_tables.table(5).to_dict("records"):
        task = TASKS[str(printed["task"])]
        train = task.rows["train"]
        validation = sum(task.rows[split] for split in task.validation_splits)
        shown = [
            f"{rows:,}" if agrees(str(text), rows) else f"**{rows:,}**"
            for rows, text in ((train, printed["train"]), (validation, printed["valid"]))
        ]
        lines.append(
            f"| {task.name} | {shown[0]} | {printed['train']} | {shown[1]} | {printed['valid']} "
            f"| {task.num_labels} | {printed['labels']} |"
        )
    return "\n".join([*lines, "", "Bold: does not round to the paper's figure.", ""])


def main() -> None:
    """Write the table."""
    PATH.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(PATH, render())
    print(f"wrote {PATH.relative_to(PATH.parents[2])}")


if __name__ == "__main__":
    main()
