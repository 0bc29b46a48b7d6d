"""The paper's printed numbers as shipped with the package."""

from __future__ import annotations

import pytest

from lora2.paper import numbers as paper_tables


def test_table1_values_and_average() -> None:
    values = paper_tables.printed_values(1, {"method": "lora2", "rank": 1})
    assert values[("rte", "accuracy")] == 89.53
    assert values[("average", "average")] == 89.06
    assert len(values) == 11
    assert paper_tables.glue_average(values, list(paper_tables.TASK_METRICS)) == pytest.approx(
        89.0575
    )


def test_every_table_loads_whole() -> None:
    tables = {n: paper_tables.table(n) for n in range(1, 6)}
    sizes = {n: (len(lines), len(lines[0])) for n, lines in tables.items()}
    assert sizes == {1: (10, 15), 2: (7, 3), 3: (5, 6), 4: (4, 7), 5: (8, 6)}
    assert all(line[name] for line in tables[1] for name in line if name != "rank")
    assert len(paper_tables.hyperparameters()) == 16


def test_other_tables_are_selected_by_their_own_columns() -> None:
    assert paper_tables.printed_values(4, {"modules": "q+v"})[("rte", "accuracy")] == 84.84
    seconds = paper_tables.printed_values(2, {"column": "lora2_s_per_it"})
    assert seconds[("qqp", "seconds_per_step")] == 1.64


@pytest.mark.parametrize(
    ("number", "row", "message"),
    [
        (1, {"method": "lora"}, "selects 2 rows"),
        (1, {"methods": "lora"}, "is selected by"),
        (1, {"rank": [8]}, "selects 0 rows"),
        ("pruning", {"method": "lora"}, "no Table pruning"),
        (1, {}, "is selected by"),
        (2, {"column": "task"}, "no column 'task'"),
        (3, {"orthogonality": "PQ+uv"}, "selects 0 rows"),
    ],
)
def test_wrong_selections_are_refused(number: int, row: dict[str, object], message: str) -> None:
    with pytest.raises(LookupError, match=message):
        paper_tables.printed_values(number, row)


def test_missing_task_and_missing_table_are_refused() -> None:
    with pytest.raises(KeyError, match="'rte'"):
        paper_tables.glue_average({("cola", "matthews_correlation"): 70.0}, ["cola", "rte"])
    with pytest.raises(LookupError, match="no Table 6"):
        paper_tables.table(6)
