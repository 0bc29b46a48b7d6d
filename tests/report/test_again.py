"""A second run is set against the first run of its seed and settings, wherever its data lay."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from study_synthetic import write_study

from lora2.report.again import main


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    return write_study(tmp_path_factory.mktemp("first") / "small")


def second(first: Path, folder: Path, **changes) -> Path:
    """Two of its runs again: their data lies elsewhere, so that their names differ."""
    runs = pd.read_csv(first / "runs.csv").iloc[[3, 40]]
    settings = [{**json.loads(text), "data.dir": "/elsewhere"} for text in runs["config"]]
    runs = runs.assign(run=runs["run"] + "x", config=[json.dumps(one) for one in settings])
    folder.mkdir()
    runs.assign(**changes).to_csv(folder / "runs.csv", index=False)
    return folder


def test_equal_scores_are_found_whatever_the_folders(first, tmp_path, capsys):
    assert main([str(first), str(second(first, tmp_path / "again", commit="def"))]) == 0
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 2 and all("commit abc123 and def" in line for line in told)


def test_a_score_that_differs_is_said(first, tmp_path, capsys):
    assert main([str(first), str(second(first, tmp_path / "again", score_last=1.0))]) == 1
    told = capsys.readouterr().out
    assert told.count("DIFFER") == 2 and "and 1.0000 DIFFER" in told


def test_a_run_of_another_seed_has_nothing_to_be_compared_with(first, tmp_path, capsys):
    assert main([str(first), str(second(first, tmp_path / "again", seed=9))]) == 1
    assert capsys.readouterr().out.count("no run of its settings and seed") == 2


def test_a_folder_without_runs_is_refused(first, tmp_path, capsys):
    assert main([str(first), str(tmp_path)]) == 2
    assert "no runs in" in capsys.readouterr().err
