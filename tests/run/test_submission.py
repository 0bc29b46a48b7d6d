"""Predictions for the GLUE server: files, labels, order and row counts."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pandas as pd
import pytest
import torch

from lora2.config.load import resolve
from lora2.glue.data import load_test
from lora2.glue.tasks import TASKS
from lora2.run import submission as module
from lora2.run.model import load_backbone, load_run
from lora2.run.recorder import Recorder
from tests.conftest import TINY
from tests.faults.refusals import fresh

ROWS = 30
EXPECTED = {
    "AX.tsv", "CoLA.tsv", "MNLI-m.tsv", "MNLI-mm.tsv", "MRPC.tsv", "QNLI.tsv", "QQP.tsv", "RTE.tsv",
    "SST-2.tsv", "STS-B.tsv", "WNLI.tsv",
}  # fmt: skip
WORDS = {"AX": 3, "MNLI-m": 3, "MNLI-mm": 3, "QNLI": 2, "RTE": 2}


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", dtype={"prediction": str})


@pytest.fixture
def untrained(monkeypatch, tmp_path):
    """Return the configuration of each task; encoder and head are those of the seed."""
    configs = {
        task: resolve([*TINY, f"task={task}", "method=full", f"results.dir={tmp_path}"]).config
        for task in TASKS
    }

    def load(folder: Path):
        task = folder.name.partition("-")[0]
        torch.manual_seed(0)
        tokenizer, model = load_backbone(configs[task].backbone, TASKS[task], None)
        return tokenizer, model.eval()

    def few(*args):
        return {split: frame[:ROWS] for split, frame in load_test(*args).items()}

    monkeypatch.setattr(module, "load_run", load)
    monkeypatch.setattr(module, "load_test", few)
    return configs


def test_a_zip_holds_every_file_with_the_servers_words(untrained, tmp_path):
    path = module.write_zip(untrained.values(), tmp_path / "glue.zip")
    with zipfile.ZipFile(path) as archive:
        assert set(archive.namelist()) == EXPECTED
        archive.extractall(tmp_path / "out")
    for file in (tmp_path / "out").iterdir():
        frame, name = read(file), file.stem
        assert list(frame.columns) == ["index", "prediction"]
        rows = 146 if name == "WNLI" else ROWS
        assert list(frame["index"]) == list(range(rows))
        if name in WORDS:
            task = TASKS["mnli" if WORDS[name] == 3 else "rte"]
            assert set(frame["prediction"]) <= set(task.label_names)
        elif name == "STS-B":
            assert frame["prediction"].astype(float).between(0, 5).all()
        else:
            assert set(frame["prediction"]) <= {"0", "1"}
    assert set(read(tmp_path / "out" / "WNLI.tsv")["prediction"]) == {"0"}


def test_seven_tasks_make_no_submission(untrained, tmp_path):
    untrained.pop("rte")
    with pytest.raises(ValueError, match="all eight tasks; missing: rte"):
        module.write_zip(untrained.values(), tmp_path / "glue.zip")
    assert not (tmp_path / "glue.zip").exists()


def test_similarities_stay_within_the_scale(untrained, monkeypatch, tmp_path):
    def decide(task, outputs):
        return outputs.reshape(-1) * 0 + torch.linspace(-2, 9, len(outputs)).numpy()

    monkeypatch.setattr(module, "decide", decide)
    (path,) = module.write_predictions(untrained["stsb"])
    values = read(path)["prediction"].astype(float)
    assert values.min() == 0 and values.max() == 5


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    return ["task=rte", "method=lora", f"results.dir={tmp_path_factory.mktemp('r')}", *TINY,
            "data.train_rows=null", "data.holdout=null"]  # fmt: skip


def test_a_finished_run_predicts_row_by_row_what_its_model_does(words, monkeypatch, capsys):
    script = fresh("run_glue")
    assert script.main([*words]) == 0
    monkeypatch.setattr(Recorder, "on_train_begin", lambda *a, **k: pytest.fail("trained again"))
    assert script.main([*words, "predict=true"]) == 0
    assert "predictions of the last checkpoint" in capsys.readouterr().out
    config = resolve(words).config
    (path,) = (Path(config.results.dir) / "predictions").glob("*/*")
    assert path.name == "RTE.tsv"
    tokenizer, model = load_run(module.run_dir(config))
    frame, answers = load_test("rte", "embedded", None)["test"], read(path)["prediction"]
    assert len(frame) == len(answers) == 300
    for row in range(0, 300, 25):
        pair = frame["sentence1"][row], frame["sentence2"][row]
        with torch.no_grad():
            logits = model(**tokenizer(*pair, return_tensors="pt")).logits[0]
        if (logits[0] - logits[1]).abs() > 1e-4:  # a tie may fall to either side in a batch
            assert answers[row] == TASKS["rte"].label_names[int(logits.argmax())]


@pytest.mark.parametrize("rows", [3000, 2999])
def test_a_folders_test_split_is_read_with_its_hidden_labels(tmp_path, rows):
    folder = tmp_path / "rte"
    folder.mkdir()
    frame = pd.DataFrame({"sentence1": ["a b"] * rows, "sentence2": ["c"] * rows})
    frame.assign(label=-1, idx=range(rows)).to_parquet(folder / "test.parquet", index=False)
    if rows == 3000:
        assert len(load_test("rte", "folder", tmp_path)["test"]) == rows
    else:
        with pytest.raises(ValueError, match="the official rte split has 3,000"):
            load_test("rte", "folder", tmp_path)
