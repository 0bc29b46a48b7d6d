"""Table 5 beside the official sizes."""

from __future__ import annotations

import pytest

from lora2.paper.sizes import PATH, agrees, render


@pytest.mark.parametrize(
    ("printed", "rows", "expected"),
    [("8.5k", 8551, False), ("8.6k", 8551, True), ("67k", 67349, True), ("1043", 1043, True),
     ("1.5k", 1500, True), ("277", 278, False)],
)  # fmt: skip
def test_rounding(printed, rows, expected):
    assert agrees(printed, rows) is expected


def test_the_committed_table_is_not_stale():
    assert PATH.read_text(encoding="utf-8") == render()


def test_what_does_not_round_to_the_paper_is_bold():
    text = render()
    assert "**8,551**" in text  # the paper prints 8.5k
    assert "| rte | 2,490 | 2.5k | 277 | 277 | 2 | 2 |" in text
