from __future__ import annotations

import pytest

from tests.sweep.test_request import script


@pytest.mark.parametrize(("name", "reads"), [("run_glue", "resolve"), ("reproduce", "parse")])
def test_ctrl_c_is_one_line_and_exit_code_130(name, reads, monkeypatch, capsys):
    def stop(words):
        raise KeyboardInterrupt

    monkeypatch.setattr(module := script(name), reads, stop)
    assert module.main(["task=rte"]) == 130
    assert capsys.readouterr().err == "\nstopped; repeat the same command to continue\n"


def test_a_submission_is_not_made_by_a_plan(capsys):
    words = ["table=1", "profile=embedded", "submission=true", "plan=true"]
    assert script("reproduce").main(words) == 2
    assert "submission = True: allowed: false beside plan=true" in capsys.readouterr().err
    assert script("reproduce").main(["table=2", "profile=embedded", "commands=true"]) == 2
    assert "commands = True: allowed: false: these tables" in capsys.readouterr().err
