"""An earlier revision's code steps beside this one's, each in its own process."""

from __future__ import annotations

import csv
import subprocess

import pytest

from lora2.bench import against, cli

pytestmark = pytest.mark.skipif(
    against.commit_of("HEAD") is None, reason="needs git and this repository's history"
)
TINY = ["--layers=1", "--width=64", "--batch=2", "--tokens=8", "--rounds=2", "--warm-up=0"]


def test_an_unknown_revision_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--device", "cpu", "--against", "no-such-revision"])
    assert stopped.value.code == 2
    assert "git knows no such revision" in capsys.readouterr().err


def test_the_other_code_is_that_of_the_revision(tmp_path):
    commit = against.commit_of("HEAD")
    against.unpack(commit, tmp_path)
    said = ["git", "-C", str(against.REPOSITORY), "show", f"{commit}:{against.NEEDED}"]
    expected = subprocess.run(said, capture_output=True, check=True).stdout
    assert (tmp_path / against.NEEDED).read_bytes() == expected
    assert not (tmp_path / "README.md").exists()


@pytest.mark.slow
def test_both_codes_take_turns_and_are_compared(tmp_path, monkeypatch):
    unpack = against.unpack

    def slower(commit, folder):
        """The revision with a second of work in place of its optimiser."""
        unpack(commit, folder)
        path = folder / against.NEEDED
        work = "until = time.process_time() + 1\n        while time.process_time() < until: pass"
        text = path.read_text().replace("self.optimizer.step()", work)
        path.write_text(text)

    monkeypatch.setattr(against, "unpack", slower)
    words = [*TINY, "--device=cpu", "--methods", "lora-r8", "--out", str(tmp_path)]
    assert cli.main([*words, "--against", "HEAD"]) == 0
    (path,) = tmp_path.glob("cpu*/against.csv")
    with open(path, newline="") as file:
        then, this = csv.DictReader(file)
    assert (then["code"], this["code"]) == (against.commit_of("HEAD"), "this")
    assert float(then["seconds"]) > 1 > float(this["ratio_to_then"])
    assert then["ratio_to_then"] == "1" and int(this["kernels"]) > int(then["kernels"])
