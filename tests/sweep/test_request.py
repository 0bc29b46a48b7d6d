from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path

import pytest

from lora2.config.load import resolve
from lora2.config.problems import ConfigError
from lora2.sweep import request as profile
from lora2.sweep.request import parse
from lora2.sweep.table import distinct
from tests.sweep import sweep_fakes as fakes

ROOT = Path(__file__).resolve().parents[2]


def script(name: str):
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def problems(*words: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as error:
        parse(list(words))
    return {problem.key: str(problem) for problem in error.value.problems}


@pytest.mark.parametrize(
    ("words", "key", "allowed"),
    [
        ([], "table", "table=NAME is missing; allowed: 1, 2"),
        (["table=9"], "table", "1, 2, 3, 4, all, figure3, pruning, roberta-large"),
        (["table=3", "tasks=cola"], "tasks", "mnli, mrpc, rte, stsb"),
        (["table=1", "tasks="], "tasks", "at least one"),
        (["table=1", "rows=lora2_k8"], "rows", "did you mean lora2-k8?"),
        (["table=1,3", "rows=lora2_k8"], "rows", "did you mean lora2-k8?"),
        (["table=1", "seeds=1,x"], "seeds.1", "a valid integer"),
        (["table=1", "seeds="], "seeds", "at least 1 item"),
        (["table=1", "seeds=4294967296"], "seeds.0", "less than 4294967296"),
        (["table=1", "workers=0"], "workers", "greater than or equal to 1"),
        (["table=1", "cluster=slrm"], "cluster", "did you mean slurm?"),
        (["table=1", "plan=yes"], "plan", "true or false"),
        (["table=1", "profile=papr"], "profile", "did you mean paper?"),
        (["table=1", "task=rte"], "task", "tasks=..."),
        (["table=1", "worker=2"], "worker", "did you mean workers?"),
        (["table=1", "--verbose"], "command line", "key=value"),
    ],
)
def test_wrong_words_are_refused_with_what_is_allowed(words, key, allowed):
    assert allowed in problems(*words)[key]


def test_the_script_says_so_and_exits_with_2(capsys):
    reproduce = script("reproduce")
    assert reproduce.main(["table=1", "tasks=xyz", "rows=abc"]) == 2
    error = capsys.readouterr().err
    assert "tasks = 'xyz'" in error and "rows = 'abc'" in error and "usage:" in error
    words = ["table=3", "profile=embedded", "rows=uv", "tasks=rte", "train.lr=1"]
    assert reproduce.main(words) == 2
    assert "train.lr = 1" in capsys.readouterr().err
    assert reproduce.main([]) == 2 and reproduce.main(["--help"]) == 0


def test_words_are_sorted_into_ours_and_the_runs():
    words = ["table=all", "profile=embedded", "seeds=2,1,2", "workers=3", "rows=lora2-k8,uv",
             "cluster=slurm", "slurm.timeout_min=60", "wait=false", "train.max_steps=9",
             "protocol=equal"]  # fmt: skip
    request = parse(words)
    given = request.options
    assert given.seeds == [2, 1] and given.workers == 3 and not given.wait
    assert request.slurm == {"timeout_min": 60}
    assert request.extra == ["train.max_steps=9", "protocol=equal"]
    rows = {plan.name: [row.id for row in plan.rows] for plan in request.plans}
    assert rows == {"1": ["lora2-k8"], "2": ["lora2-k8"], "3": ["uv"], "figure3": ["lora2-k8"]}


def test_commands_are_the_runs_that_are_left_one_a_line(tmp_path, capsys):
    words = ["table=1,2,3", "profile=small", "tasks=mrpc", "rows=lora2-k1,full,all", "seeds=1,2"]
    # The later word cuts the profile's plan short: its intervals are longer than the run.
    words += ["train.max_steps=20", f"results.dir={tmp_path / 'a b'}", "data.source=hub"]
    request = parse(words)
    jobs = distinct([job for plan in request.plans[::2] for job in request.jobs_of(plan)])
    assert script("reproduce").main([*words, "commands=true", "plan=true"]) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith("profile small: ")
    lines = [shlex.split(line) for line in shown.out.splitlines()]
    assert {tuple(line[:2]) for line in lines} == {("python", "scripts/run_glue.py")}
    configs = [resolve(line[2:]).config for line in lines]
    assert configs == [job.resolved.config for job in jobs] and len(configs) == 4
    fakes.publish(configs[0])
    assert script("reproduce").main([*words, "commands=true"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_seeds_of_profile_or_command_line_and_times_need_only_one():
    def seeds(*words: str) -> list[int]:
        request = parse(["tasks=rte", "rows=lora2-k8", *words])
        return [job.resolved.config.seed for job in request.jobs_of(request.plans[0])]

    assert seeds("table=1", "profile=embedded") == [1]
    assert seeds("table=1", "profile=embedded", "seeds=5,6") == [5, 6]
    assert seeds("table=2", "profile=embedded", "seeds=5,6") == [5]
    assert seeds("table=1", "profile=paper") == [4]  # the public script's seed of RTE


def test_auto_takes_the_paper_profile_only_where_everything_is_at_hand(monkeypatch, tmp_path):
    hub = {"model": "blocked", "dataset": "blocked"}
    monkeypatch.setattr("lora2.hub.cached", lambda path, kind: False)
    monkeypatch.setattr("lora2.hub.offline_reason", lambda path, kind: hub[kind])
    monkeypatch.setattr(profile, "gpu_count", lambda: 0)
    request = parse(["table=1"])
    assert request.profile.name == "embedded"
    assert request.notes[0] == "profile auto -> embedded: no CUDA GPU is visible"
    assert "profile=paper" in request.notes[1]
    monkeypatch.setattr(profile, "gpu_count", lambda: 1)
    notes = "\n".join(parse(["table=1"]).notes)
    assert "microsoft/deberta-v3-base is not available: blocked" in notes
    assert "nyu-mll/glue is not available: blocked" in notes
    hub["model"] = None
    assert parse(["table=1"]).profile.name == "embedded"
    assert parse(["table=1", f"data.dir={tmp_path}"]).profile.name == "paper"
    hub["dataset"] = None
    assert parse(["table=1"]).profile.name == "paper"


def test_the_first_lines_say_what_auto_chose_and_how_to_get_the_papers(
    monkeypatch, tmp_path, capsys
):
    assert "PROFILE ?= auto" in (ROOT / "Makefile").read_text()
    reproduce = script("reproduce")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(profile, "gpu_count", lambda: 0)
    monkeypatch.setattr("lora2.sweep.pool.Pool.do", stop)
    words = ["table=1", "rows=lora2-k1", "tasks=rte", f"results.dir={tmp_path}"]
    assert reproduce.main(words) == 130
    first, second, third = capsys.readouterr().out.splitlines()[:3]
    assert first == "profile auto -> embedded: no CUDA GPU is visible"
    assert "the paper's: profile=paper on a machine with a CUDA GPU" in second
    assert "profile embedded: not the paper's encoder and not the paper's data" in third


def test_an_encoder_folder_is_not_asked_from_the_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(profile, "gpu_count", lambda: 1)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = [f"backbone.path={tmp_path}", f"data.dir={tmp_path}"]
    assert profile.what_paper_lacks("deberta-v3-base", words) == []


def test_slurm_without_submitit_or_sbatch_says_what_to_do(monkeypatch, tmp_path):
    from lora2.sweep import slurm

    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match="pip install submitit"):
        slurm.submit([], tmp_path, {}, None)
    monkeypatch.undo()
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="sbatch is not found"):
        slurm.submit([], tmp_path, {}, None)


def test_slurm_jobs_end_when_they_leave_the_queue(monkeypatch, tmp_path):
    from lora2.sweep import slurm
    from tests.sweep import sweep_fakes as fakes

    jobs = [fakes.job(tmp_path, seed) for seed in (1, 2, 3)]
    seen = iter([{"7_0", "7_1", "7_2"}, {"7_1", "7_2"}, {"7_2"}, set()])

    def queue(ids):
        found = next(seen)
        if len(found) == 1:
            fakes.publish(jobs[1].resolved.config, "diverged")
        if len(found) == 2:
            fakes.publish(jobs[0].resolved.config)
        return found

    monkeypatch.setattr(slurm, "in_queue", queue)
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0)
    found = slurm.watch(jobs, ["7_0", "7_1", "7_2"])
    assert [one.state for one in found] == ["finished", "diverged", "failed"]
    assert "without a result" in found[2].message
