"""The page of targets holds what the CSVs hold; a target that was missed is marked."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from tests.sweep.test_request import script

cli = script("bench")
RESULTS, read, targets = cli.RESULTS, cli.read, cli.targets
ROOT = Path(__file__).resolve().parents[2]
FOLDERS = sorted(path.parent for path in (ROOT / RESULTS).glob("*/step.csv"))
ORIGIN = {"device": "Some GPU", "threads": 1, "torch": "2", "transformers": "5", "peft": "0.21",
          "commit": "abc", "dirty": False}  # fmt: skip
SIZE = {"layers": 2, "width": 64, "precision": "bf16", "batch": 4, "tokens": 8.0}


def bench(folder: Path, device: str, ratio: float = 1.04) -> Path:
    """Write the CSVs that a bench would."""
    parts = {
        "step": [
            {"phase": phase, "encoder": encoder, "row": row, "label": row, **SIZE, "kernels": n,
             "seconds": 0.01125, "ratio_to_lora": r, "ratio_to_adalora": 0.85,
             "ratio_to_base": 1.02, "memory_mib": 1234.5, "memory_ratio_to_lora": r / 2}
            for encoder, r in (("deberta-v3-base", ratio), ("roberta-large", 9.0))
            for phase, row, n in (
                ("train", "lora2-k8", 700), ("train", "full", 9999), ("inference", "base", 170),
                ("inference", "merged", 170), ("inference", "unmerged", 240),
            )
        ],
        "driver": [
            {"row": row, "label": row, **SIZE, "seconds": 1.0, "ratio_to_bare": r}
            for row, r in (("bare", 1.0), ("driver", 1.025))
        ],
    }  # fmt: skip
    folder.mkdir(parents=True)
    for part, lines in parts.items():
        frame = pd.DataFrame([{**line, **ORIGIN, "device": device} for line in lines])
        frame.to_csv(folder / f"{part}.csv", index=False)
    return folder


def test_each_device_has_its_limits_and_only_the_base_encoder_is_judged(tmp_path):
    cpu = read(bench(tmp_path / "cpu", "cpu x86_64 2 threads"))
    text = targets([cpu, read(bench(tmp_path / "gpu", "GPU", ratio=1.06))])
    assert "| Target | At most | GPU | cpu x86\\_64 2 threads |" in text
    assert "time vs LoRA r=8 | 1.05 | 1.060 (missed) | 1.040 |" in text
    assert "0.93 (GPU 0.8) | 0.850 (missed) | 0.850 |" in text
    assert "additional kernels | 0 | 0 | 0 |" in text
    assert "time vs a bare loop | 1.03 | 1.025 | 1.025 |" in text
    assert "Not measured on a GPU" not in text


def test_what_was_not_measured_is_said(tmp_path):
    folder = bench(tmp_path / "cpu", "cpu")
    (folder / "step.csv").unlink()
    text = targets([read(folder)])
    assert "Not measured on a GPU: none was available." in text
    assert "time vs LoRA r=8 | 1.05 | not measured |" in text


def test_one_kernel_more_in_merged_inference_is_a_miss(tmp_path):
    parts = read(bench(tmp_path / "cpu", "cpu"))
    step = parts["step"]
    step.loc[(step["row"] == "merged") & (step["encoder"] == "deberta-v3-base"), "kernels"] += 1
    assert "additional kernels | 0 | 1 (missed) |" in targets([parts])
    assert "time vs unmerged LoRA r=8 | 1 | 1.040 (missed) |" in targets([parts])


def test_all_folders_are_read_and_none_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--targets"]) == 2 and "run `make bench` first" in capsys.readouterr().err
    for device in ("a", "b"):
        bench(Path("results/bench") / device, device)
    assert cli.main(["--targets"]) == 0
    assert "| Target | At most | a | b |" in Path("results/bench/targets.md").read_text()


def test_the_committed_page_is_that_of_the_committed_benches():
    page = (ROOT / RESULTS / "targets.md").read_text(encoding="utf-8")
    assert page == targets([read(folder) for folder in FOLDERS])
