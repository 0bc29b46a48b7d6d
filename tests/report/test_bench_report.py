"""The page and plots of a bench hold what its CSVs hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora2.bench.record import write as write_csv
from lora2.report import bench_figures
from lora2.report.bench import PARTS, main, read, render, write

ROWS = {
    "full": "Full fine-tuning",
    "lora-r8": "LoRA r=8",
    "adalora-r8": "AdaLoRA r=8",
    "lora2-k8": "LoRA² k=8",
}


def measured(number: float) -> dict[str, object]:
    columns = {"rounds": 5, "seconds": number / 100, "seconds_q1": 0.0, "seconds_q3": 1.0}
    columns |= {"ratio_to_lora": number, "ratio_to_adalora": 0.8 * number}
    return {**columns, "kernels": int(100 * number), "syncs": 0}


def shape(row: str, label: str) -> dict[str, object]:
    named = {"row": row, "label": label, "method": row.split("-")[0]}
    return {"layers": 2, "width": 64, "precision": "bf16", "batch": 4, "tokens": 8.0, **named}


def synthetic(folder: Path, device: str, parts: tuple[str, ...] = tuple(PARTS)) -> Path:
    """Write the CSVs that a bench would."""
    origin = {"device": device, "threads": 1, "torch": "2", "transformers": "5", "peft": "0.21"}
    origin |= {"commit": "abc", "dirty": False}
    own = [(i, shape(*pair), measured(1 + i / 8)) for i, pair in enumerate(ROWS.items())]
    kinds = {
        "micro": [
            {"part": part, "matrices": matrices, **s, **m}
            for part, matrices in (("regulariser", 72), ("regulariser", 144), ("layer", 6))
            for _, s, m in own
        ],
        "step": [
            {"phase": phase, "encoder": "e", **s, **m, "ratio_to_base": 1.5, "memory_mib": 10.0 + i}
            for phase in ("train", "inference")
            for i, s, m in own
        ],
        "table2": [
            {"task": task, "encoder": "e", **s, **m, "memory_mib": 1234.5}
            for task in ("cola", "qnli")
            for _, s, m in own
        ],
        "scaling": [
            {"axis": axis, "value": value, "what": what, **s, **m}
            for axis in ("layers", "k", "r")
            for what in (("step", "allocator") if axis == "layers" else ("step",))
            for value in (1, 8)
            for _, s, m in own[1:]
            if axis == "layers" or s["method"] in ("lora", "lora2")
        ],
        "profile": [
            {**s, **m, "kind": kind, "name": name, "calls": 9, "share": share}
            for _, s, m in (own[1], own[3])
            for kind, name, share in (
                ("part", "encoder", 0.75),
                ("part", "adapter", 0.25),
                ("operation", "aten::mm", 0.625),
                ("operation", "others", 0.375),
            )
        ],
        "against": [
            {"code": code, **s, **m, "ratio_to_then": 0.5 if code == "this" else 1.0}
            for _, s, m in (own[1], own[3])
            for code in ("abcdef", "this")
        ],
    }
    for part in parts:
        write_csv(folder / f"{part}.csv", kinds[part], origin)
    return folder


def test_every_part_gets_a_table_and_a_plot(tmp_path):
    folder = synthetic(tmp_path / "gpu", "Some GPU")
    paths = write(folder)
    assert [path.name for path in paths] == ["bench.md", *(f"{part}.png" for part in PARTS)]
    assert all(path.stat().st_size > 5000 for path in paths[1:])
    text = paths[0].read_text()
    assert text.startswith("# Bench on Some GPU") and "commit abc, 5 rounds" in text
    assert "| cola | LoRA r=8 |" in text.replace("e | cola", "cola")
    assert "| 11.25 | 1.125 | 0.900 |" in text  # milliseconds, and the two ratios
    assert "1,234" in text and "![" in text
    assert "| operation | aten::mm | 9 | 62.5% |" in text
    assert "| this | LoRA² k=8 |" in text and "to then" in text
    first = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write(folder)] == first


def test_a_processors_page_has_ratios_and_no_times(tmp_path):
    text = render(read(synthetic(tmp_path, "cpu x86_64 2 threads", ("step",))))
    assert "to LoRA" in text and "| ms |" not in text and "| 1.125 | 0.900 |" in text
    assert "Table 2" not in text


@pytest.mark.parametrize("part", PARTS)
def test_every_table_says_the_precision_of_its_rows(part, tmp_path):
    text = render(read(synthetic(tmp_path, "cpu", (part,))))
    head, _, *rows = [line for line in text.splitlines() if line.startswith("|")]
    place = head.split(" | ").index("Precision")
    assert {row.split(" | ")[place] for row in rows} == {"bf16"}


def test_parts_without_a_precision_ran_in_fp32(tmp_path):
    path = synthetic(tmp_path, "cpu", ("micro",)) / "micro.csv"
    path.write_text(path.read_text().replace("precision", "other"))
    assert "| 64 | fp32 | 4 |" in render(read(tmp_path))


def test_the_figure_of_a_step_says_its_size_and_precision(tmp_path):
    figure = bench_figures.step(read(synthetic(tmp_path, "cpu", ("step",)))["step"])
    assert figure.axes[0].get_ylabel() == "e\n2 layers, 4 x 8 tokens, bf16"


def test_all_folders_are_found_and_what_is_wrong_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([]) == 2 and "run `make bench` first" in capsys.readouterr().err
    for device in ("a", "b"):
        synthetic(Path("results/bench") / device, device, ("micro",))
    assert main([]) == 0
    assert len(list(Path("results/bench").glob("*/micro.png"))) == 2
    (Path("results/bench/a") / "step.csv").write_text("x\n1\n")
    assert main(["results/bench/a"]) == 2
    assert "lacks commit, device, seconds" in capsys.readouterr().err


@pytest.mark.parametrize("part", PARTS)
def test_a_part_alone_is_enough(part, tmp_path):
    assert len(write(synthetic(tmp_path, "cpu", (part,)))) == 2


def test_every_row_of_a_part_has_a_bar_of_its_own(tmp_path):
    frame = read(synthetic(tmp_path, "cpu", ("micro",)))["micro"]
    figure = bench_figures.micro(frame)
    for axes in figure.axes:
        names = [label.get_text() for label in axes.get_yticklabels()]
        assert len(names) == len(axes.patches) == (8 if "regulariser" in axes.get_title() else 4)
