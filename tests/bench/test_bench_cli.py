"""``scripts/bench.py`` from end to end, on a small encoder."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch

from lora2.bench import cases, step
from lora2.bench.cases import Case
from lora2.run.device import PACKAGES
from tests.sweep.test_request import script

cli = script("bench")
TINY = ["--layers=1", "--batch=2", "--tokens=8", "--rounds=2"]
ROWS = ["lora-r8", "adalora-r8", "lora2-k8"]  # test_bench_step.py steps every method


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """The folder that a tiny bench of steps and of the driver wrote."""
    out = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        for module in (cli, step):
            patch.setattr(module, "release", lambda: None)  # collects the garbage of all tests
        assert (
            cli.main([*TINY, "--methods", *ROWS, "--only", "step", "driver", "--out", str(out)])
            == 0
        )
    (folder,) = out.iterdir()
    return folder


def rows(folder: Path, part: str) -> list[dict[str, str]]:
    with open(folder / f"{part}.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_every_part_is_written_with_where_it_comes_from(tiny):
    assert sorted(path.name for path in tiny.iterdir()) == ["driver.csv", "step.csv"]
    for row in rows(tiny, "step") + rows(tiny, "driver"):
        assert row["precision"] == "fp32"
        assert cli.slug(row["device"]) == tiny.name and row["device"].startswith("cpu")
        assert row["commit"] and row["dirty"] in ("True", "False") and float(row["load"]) >= 0
        assert all(row[package] for package in PACKAGES)
        assert 0 < float(row["seconds_q1"]) <= float(row["seconds"]) <= float(row["seconds_q3"])


def test_steps_hold_the_methods_at_both_encoders_and_inference(tiny):
    found = rows(tiny, "step")
    for encoder in cli.ENCODERS:
        own = [row for row in found if row["encoder"] == encoder]
        assert [row["row"] for row in own if row["phase"] == "train"] == ROWS
        for row in own:
            ratio = float(row["ratio_to_lora"] or row["ratio_to_base"])
            assert math.isfinite(ratio) and int(row["kernels"]) > 0
            assert (row["layers"], row["width"], row["tokens"]) == ("1", "64", "8")
            if row["phase"] == "train":
                assert float(row["memory_mib"]) > float(row["held_mib"]) > 0
                assert int(row["trainable"]) > 0
                lora = next(one for one in own if one["row"] == "lora-r8")
                expected = float(row["memory_mib"]) / float(lora["memory_mib"])
                assert float(row["memory_ratio_to_lora"]) == pytest.approx(expected, rel=1e-4)
            if row["row"] == "lora-r8":
                assert float(row["ratio_to_lora"]) == 1
        served = {row["row"]: row for row in own if row["phase"] == "inference"}
        assert list(served) == ["base", "merged", "unmerged", "lora"]
        assert served["merged"]["kernels"] == served["base"]["kernels"]
        assert int(served["unmerged"]["kernels"]) > int(served["base"]["kernels"])


def test_the_driver_takes_its_steps_beside_a_bare_loop(tiny):
    bare, driver = rows(tiny, "driver")
    assert (bare["row"], driver["row"]) == ("bare", "driver")
    assert bare["rounds"] == driver["rounds"] == "2" and bare["ratio_to_bare"] == "1.0"
    assert math.isfinite(float(driver["ratio_to_bare"])) and driver["encoder"] == cli.DRIVEN


def test_the_time_of_a_step_is_given_to_the_driver_or_the_bare_loop(monkeypatch):
    clock = [0.0]

    def spend(seconds):
        clock[0] += seconds

    monkeypatch.setattr(step, "own_clock", lambda device: lambda: clock[0])
    beside = cases.BareBeside(lambda: spend(5), "cpu")
    beside.on_train_begin()
    for seconds in (2, 3):
        spend(seconds)
        beside.on_step_end()
    assert beside.seconds == {"driver": [2, 3], "bare": [5, 5]}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_forward_passes_run_in_the_precision_that_their_rows_say(precision, monkeypatch):
    seen = []
    real = torch.nn.Linear.forward

    def forward(self, x):
        on = torch.is_autocast_enabled("cpu")
        seen.append(torch.get_autocast_dtype("cpu") if on else torch.float32)
        return real(self, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", forward)
    found = cases.training(Case("minilm", 1, 2, 4, precision, "cpu"), ["lora-r8"], 1, 0)
    assert {row["precision"] for row in found} == {precision}
    assert set(seen) == {{"fp32": torch.float32, "bf16": torch.bfloat16}[precision]}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--rounds", "0"], "'0' (allowed: a whole number >= 1)"),
        (["--batch", "x"], "'x' (allowed: a whole number >= 1)"),
        (["--only", "stp"], "invalid choice: 'stp'"),
        (["--methods", "lora3"], "invalid choice: 'lora3'"),
    ],
)
def test_bad_words_are_refused_before_anything_runs(words, complaint, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("part", "words", "written"),
    [
        ("step", ["--methods", "lora-r8"], False),
        ("step", ["--encoders", "minilm"], False),
        ("step", ["--layers", "2"], False),
        ("step", ["--batch", "2"], False),
        ("step", ["--tokens", "16"], False),
        ("step", ["--precision", "bf16"], False),
        ("driver", ["--tokens", "16"], False),
        ("step", [], True),
        ("step", ["--rounds", "1"], True),
    ],
)
def test_other_rows_sizes_or_precision_replace_no_file(
    part, words, written, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "measure", lambda *_: [{"row": "lora-r8", "seconds": 1.0}])
    monkeypatch.setattr(cli, "provenance", dict)  # asks git twice
    monkeypatch.setattr(cli, "release", lambda: None)  # collects the garbage of the whole suite
    words = ["--only", part, *words]
    assert cli.main(words) == 0
    assert ("shown, not written" in capsys.readouterr().out) != written
    assert len(list(tmp_path.glob(f"results/bench/*/{part}.csv"))) == written
    assert cli.main([*words, "--out", "elsewhere"]) == 0
    assert len(list(tmp_path.glob(f"elsewhere/*/{part}.csv"))) == 1


def test_numbers_are_written_to_six_digits(tmp_path):
    path = tmp_path / "a" / "step.csv"
    cli.write(path, [{"x": 1 / 3, "y": 120632834, "z": ""}], {"device": "d"})
    assert path.read_text() == "x,y,z,device\n0.333333,120632834,,d\n"
    assert [one.name for one in path.parent.iterdir()] == ["step.csv"]
