"""The paper profile's tables from end to end, with random weights: eight steps of every run.

    LORA2_GLUE=DIR LORA2_ENCODERS=DIR python -m pytest -m slow tests/sweep/test_paper_profile.py

LORA2_GLUE: a folder as ``data.dir`` takes it; where it has no train.parquet, train_subset is used.
LORA2_ENCODERS: a folder whose subfolders NAME* hold a tokenizer. Without them the embedded data
and tokenizers are used. LORA2_LAYERS: fewer layers than the encoder has, to save time: with one,
a task of either table takes about 80 s of a core.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from lora2.embedded import encoder_path
from lora2.glue.tasks import TASKS
from lora2.run.model import shaped
from lora2.sweep.table import load_table

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = {"deberta-v3-base": "embedded", "roberta-large": "embedded-roberta"}


def encoder_folder(name: str, folder: Path) -> Path:
    """Write the configuration of a published encoder and a tokenizer, without weights."""
    known = Path(os.environ["LORA2_ENCODERS"]) if "LORA2_ENCODERS" in os.environ else None
    source = next(known.glob(f"{name}*")) if known else encoder_path(STAND_IN[name])
    folder.mkdir()
    for path in source.iterdir():
        if path.suffix not in (".safetensors", ".bin") and path.name != "config.json":
            shutil.copyfile(path, folder / path.name)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    text = json.dumps(settings | {"model_max_length": 512})
    (folder / "tokenizer_config.json").write_text(text)
    layers = os.environ.get("LORA2_LAYERS")
    shaped(name, int(layers) if layers else None).save_pretrained(folder)
    return folder


def data_words(task: str) -> list[str]:
    if "LORA2_GLUE" not in os.environ:
        return ["data.source=embedded"]
    folder = Path(os.environ["LORA2_GLUE"])
    whole = (folder / task / "train.parquet").is_file()
    return [f"data.dir={folder}", *([] if whole else ["data.train=train_subset"])]


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("table", "encoder"), [("1", "deberta-v3-base"), ("roberta-large", "roberta-large")]
)
def test_every_row_of_the_paper_profile_trains_and_fills_its_cell(tmp_path, table, encoder, task):
    words = [
        f"table={table}", "profile=paper", f"tasks={task}", "seeds=1", "workers=1",
        f"results.dir={tmp_path / 'results'}",
        f"backbone.path={encoder_folder(encoder, tmp_path / 'encoder')}",
        "backbone.random_init=true", *data_words(task), "data.train_rows=32", "data.holdout=12",
        # Eight, since SoRA's schedule of RTE has seven stages.
        "train.max_steps=8", "train.eval_steps=8", "train.save_steps=null", "train.batch_size=2",
    ]  # fmt: skip
    command = [sys.executable, str(ROOT / "scripts" / "reproduce.py"), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = load_table(table).rows
    runs = pd.concat(map(pd.read_csv, tmp_path.glob("results/runs/*/metrics.csv")))
    assert runs["status"].tolist() == ["finished"] * len(rows) and (runs["steps"] == 8).all()
    for row in rows:
        line = next(one for one in done.stdout.splitlines() if one.startswith(f"| {row.label} |"))
        cells = [cell for cell in line.split("|")[4:-1] if any(map(str.isdigit, cell))]
        assert cells, f"{row.label} has no score: {line}"
