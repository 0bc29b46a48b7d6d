"""``scripts/bench.py`` from end to end, where nothing but torch, transformers and peft is there."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from pathlib import Path

import pytest

from lora2.bench import cli, record

ROOT = Path(__file__).resolve().parents[2]
BLOCKED = ["hydra", "omegaconf", "pydantic", "datasets", "evaluate", "pandas", "pyarrow"]
BLOCKED += ["matplotlib", "scipy", "sklearn", "submitit", "aenum"]
TINY = ["--layers=1", "--width=64", "--batch=2", "--tokens=8", "--rounds=2", "--warm-up=1"]
TINY += ["--depths", "1", "2", "--ranks", "1", "8", "--tasks", "cola", "stsb"]
TINY += ["--device=cpu", "--commit=abc"]
BARE = """
import sys, runpy
for name in {blocked!r}:
    sys.modules[name] = None
sys.path.insert(0, ".")
from lora2.bench.encoders import SHAPES
for shape in SHAPES.values():  # drawing large embeddings is most of a tiny bench
    shape["vocab_size"] = 200
sys.argv = ["bench.py", *{words!r}]
runpy.run_path("scripts/bench.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """The folder that a tiny bench of everything wrote."""
    out = tmp_path_factory.mktemp("bench")
    code = BARE.format(blocked=BLOCKED, words=[*TINY, "--out", str(out)])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "lora2-k8" in done.stdout
    (folder,) = out.iterdir()
    return folder


def rows(folder: Path, part: str) -> list[dict[str, str]]:
    with open(folder / f"{part}.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_every_part_is_written_with_where_it_comes_from(tiny):
    assert sorted(path.name for path in tiny.iterdir()) == [
        "micro.csv",
        "profile.csv",
        "scaling.csv",
        "step.csv",
        "table2.csv",
    ]
    for part in cli.PARTS:
        for row in rows(tiny, part):
            assert row["precision"] == "fp32"
            assert record.slug(row["device"]) == tiny.name and row["device"].startswith("cpu")
            assert row["commit"] == "abc" and row["dirty"] in ("True", "False")
            for package in record.PACKAGES:
                assert row[package]
            if part == "profile":
                continue
            assert math.isfinite(float(row["seconds"]))
            by_difference = "regulariser" in (row.get("part"), row.get("what"))
            assert by_difference or float(row["seconds_q1"]) > 0
            assert float(row["seconds_q1"]) <= float(row["seconds"]) <= float(row["seconds_q3"])


def test_steps_hold_every_method_at_both_encoders_and_inference(tiny):
    found = rows(tiny, "step")
    for encoder in cli.ENCODERS:
        own = [row for row in found if row["encoder"] == encoder]
        assert [row["row"] for row in own if row["phase"] == "train"] == list(cli.METHODS)
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
        assert served["merged"]["kernels"] == served["base"]["kernels"]
        assert int(served["unmerged"]["kernels"]) > int(served["base"]["kernels"])


def test_parts_count_the_seventy_two_matrices_and_twice_as_many_add_no_kernel(tiny):
    found = {(row["part"], row["row"], row["matrices"]): row for row in rows(tiny, "micro")}
    assert ("layer", "lora2-k8", "6") in found
    assert found["allocator", "adalora-r8", "72"]["syncs"] == "73"
    for row in ("lora2-k1", "lora2-k8"):
        for part, most in (("regulariser", 75), ("allocator", 20)):
            once, twice = (found[part, row, matrices] for matrices in ("72", "144"))
            assert once["syncs"] == twice["syncs"] == "0"
            assert once["kernels"] == twice["kernels"]
            theirs = int(found[part, "adalora-r8", "72"]["kernels"])
            assert 0 < int(once["kernels"]) <= min(most, theirs / 4)


def test_table_2_has_real_lengths_and_scaling_its_axes(tiny):
    lengths = {row["task"]: float(row["tokens"]) for row in rows(tiny, "table2")}
    assert list(lengths) == ["cola", "stsb"] and 4 <= lengths["cola"] < lengths["stsb"]
    found = rows(tiny, "scaling")
    assert {row["axis"] for row in found} == {"layers", "k", "r"}
    assert [row["value"] for row in found if row["axis"] == "k"] == ["8", "1", "8"]
    allocator = {
        row["value"]: int(row["kernels"])
        for row in found
        if (row["what"], row["row"]) == ("allocator", "lora2-k8")
    }
    assert allocator["1"] == allocator["2"]


def test_the_profile_divides_a_step_into_its_parts(tiny):
    found = rows(tiny, "profile")
    for row, parts in (("lora-r8", 4), ("lora2-k8", 6)):
        own = {r["name"]: r for r in found if (r["row"], r["kind"]) == (row, "part")}
        assert len(own) == parts and all(int(part["calls"]) > 0 for part in own.values())
        assert sum(float(part["share"]) for part in own.values()) == pytest.approx(1, rel=1e-4)
        operations = [r for r in found if (r["row"], r["kind"]) == (row, "operation")]
        assert sum(float(one["share"]) for one in operations) <= 1
        assert operations[-1]["name"] == "others"
    shares = [float(one["share"]) for one in operations[:-1]]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--device", "cuda"], "no GPU is visible"),
        (["--rounds", "0"], "'0' (allowed: a whole number >= 1)"),
        (["--batch", "x"], "'x' (allowed: a whole number >= 1)"),
        (["--only", "stp"], "invalid choice: 'stp'"),
        (["--methods", "lora3"], "invalid choice: 'lora3'"),
        (["--width", "100"], "width=100 (allowed: a multiple of 64)"),
        (["--glue", "/none"], "--glue /none: no such folder"),
    ],
)
def test_bad_words_are_refused_before_anything_runs(words, complaint, capsys, monkeypatch):
    monkeypatch.setattr(cli.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_part_of_the_rows_replaces_no_whole_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(cli.PARTS, "step", lambda args, sizes: [{"row": "lora-r8", "seconds": 1.0}])
    words = ["--only", "step", "--device", "cpu"]
    assert cli.main([*words, "--methods", "lora-r8"]) == 0
    assert "shown, not written" in capsys.readouterr().out and not list(tmp_path.iterdir())
    assert cli.main(words) == 0
    (path,) = tmp_path.glob("results/bench/cpu*/step.csv")
    assert cli.main([*words, "--methods", "lora-r8", "--out", "elsewhere"]) == 0
    assert list(tmp_path.glob("elsewhere/cpu*/step.csv")) and path.is_file()


WHOLE = {"layers": "3", "batch": "4", "tokens": "48"}  # a processor's


@pytest.mark.parametrize(
    ("part", "words", "written"),
    [
        ("step", ["--layers", "2"], False),
        ("step", ["--layers", "0"], False),
        ("step", ["--width", "128"], False),
        ("step", ["--batch", "2"], False),
        ("step", ["--tokens", "16"], False),
        ("step", ["--precision", "bf16"], False),
        ("scaling", ["--depths", "1", "2"], False),
        ("scaling", ["--ranks", "8"], False),
        ("table2", ["--layers", "3"], False),  # a default of other parts
        ("table2", ["--batch", "4"], False),
        ("table2", ["--layers", "1", "--batch", "32"], True),
        ("step", [f"--{name}={value}" for name, value in WHOLE.items()], True),
        ("step", ["--width=0", "--precision", "fp32", "--depths", "12", "24", "48"], True),
        ("step", ["--rounds", "1", "--warm-up", "0"], True),
    ],
)
def test_another_size_or_precision_replaces_no_file(part, words, written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(cli.PARTS, part, lambda args, sizes: [{"row": "lora-r8", "seconds": 1.0}])
    words = ["--only", part, "--device", "cpu", *words]
    assert cli.main(words) == 0
    assert len(list(tmp_path.glob(f"results/bench/cpu*/{part}.csv"))) == written
    assert cli.main([*words, "--out", "elsewhere"]) == 0
    assert len(list(tmp_path.glob(f"elsewhere/cpu*/{part}.csv"))) == 1


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a" / "step.csv"
    record.write(path, [{"x": 1 / 3}], {"device": "d"})
    assert path.read_text() == "x,device\n0.333333,d\n"
    with pytest.raises(ValueError):
        record.write(path, [{"x": 1}, {"y": 2}], {"device": "d"})
    assert path.read_text() == "x,device\n0.333333,d\n"
    assert [one.name for one in path.parent.iterdir()] == ["step.csv"]
