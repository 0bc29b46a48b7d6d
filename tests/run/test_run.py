"""One run: the folder is whole, seeds decide everything, a stopped run goes on as if it had not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from lora2.config.load import resolve
from lora2.records.run_folder import newest_checkpoint, publish, status
from lora2.run.recorder import Diverged, Recorder
from tests.conftest import TINY

TIMING = ["train_seconds", "seconds_per_step", "peak_memory_mb"]
FILES = {
    "config.yaml", "metrics.csv", "history.csv", "ranks.csv", "predictions.parquet", "status",
    "adapter",
}  # fmt: skip
LORA2 = (
    "task=rte",
    "method=lora2",
    "method.k=2",
    "method.init_weights=null",
    "method.init_std=0.3",
)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = (folder / "adapter").glob("*.safetensors")
    return load_file(path)


def assert_same_run(one: Path, other: Path) -> None:
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)
    for name in ("history.csv", "ranks.csv"):
        assert (one / name).read_text() == (other / name).read_text()
    frames = [pd.read_parquet(folder / "predictions.parquet") for folder in (one, other)]
    pd.testing.assert_frame_equal(*frames)
    rows = [pd.read_csv(folder / "metrics.csv").drop(columns=TIMING) for folder in (one, other)]
    pd.testing.assert_frame_equal(*rows)


@pytest.fixture(scope="module")
def finished(do_run) -> Path:
    return do_run(*LORA2)


def test_folder_is_whole(finished):
    assert {path.name for path in finished.iterdir()} == FILES
    assert status(finished) == "finished"
    assert [path.name for path in finished.parent.iterdir()] == [finished.name]
    assert not (finished.parents[1] / "work" / finished.name).exists()
    row = pd.read_csv(finished / "metrics.csv").iloc[0]
    assert row["run"] == finished.name and row["steps"] == 6
    history = pd.read_csv(finished / "history.csv")
    assert list(history["step"]) == [3, 6]
    assert row["score_best"] == history["score"].max()
    assert row["score_last"] == history["score"].iloc[-1]
    assert row["data_marks"].startswith("embedded data; train_rows=88 of ")


def test_predictions_give_the_scores_again(finished):
    from sklearn.metrics import accuracy_score

    row = pd.read_csv(finished / "metrics.csv").iloc[0]
    frame = pd.read_parquet(finished / "predictions.parquet")
    assert accuracy_score(frame["label"], frame["best"]) == row["best_accuracy"]
    assert accuracy_score(frame["label"], frame["last"]) == row["last_accuracy"]


def test_ranks_are_the_target(finished):
    ranks = pd.read_csv(finished / "ranks.csv")
    row = pd.read_csv(finished / "metrics.csv").iloc[0]
    assert len(ranks) == 12 * 8  # 2 layers x 6 matrices x r
    assert ranks["kept"].sum() == 12 * 3  # target_r
    assert sorted(ranks["matrix"].unique()) == [
        "attention_output", "intermediate", "key", "output", "query", "value",
    ]  # fmt: skip
    assert row["params_kept"] < row["params_adapter"]


def test_same_seed_same_bits_other_seed_other(do_run, finished):
    assert_same_run(finished, do_run(*LORA2))
    other = do_run(*LORA2, "seed=7")
    mine, theirs = weights(finished), weights(other)
    assert any(not torch.equal(mine[key], theirs[key]) for key in mine)


def test_finished_run_is_not_repeated(do_run, finished, monkeypatch):
    monkeypatch.setattr("lora2.run.run.load_task", lambda *a, **k: pytest.fail("ran again"))
    assert do_run(*LORA2, into=finished.parents[1]) == finished


@pytest.mark.parametrize("method", ["lora2", "adalora", "sora", "full"])
def test_stopped_and_resumed_equals_uninterrupted(do_run, monkeypatch, tmp_path, method):
    words = ("task=mrpc", f"method={method}", "train.save_steps=3", "train.eval_steps=2")
    whole = do_run(*words)

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise OSError("the machine went away")

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "on_step_begin", stop)
        with pytest.raises(OSError, match="went away"):
            do_run(*words, into=tmp_path)
    failed = tmp_path / "runs" / whole.name
    assert status(failed) == "failed"
    assert "went away" in pd.read_csv(failed / "metrics.csv")["error"][0]
    work = tmp_path / "work" / whole.name
    assert newest_checkpoint(work) == work / "checkpoint-4"
    (work / "checkpoint-5").mkdir()  # cut off while it was written
    assert_same_run(whole, do_run(*words, into=tmp_path))


def test_interrupting_a_retried_run_keeps_its_checkpoints(do_run, monkeypatch, tmp_path):
    def stop(with_error):
        def hook(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise with_error

        return hook

    for error in (OSError("away"), KeyboardInterrupt()):
        with monkeypatch.context() as patch:
            patch.setattr(Recorder, "on_step_begin", stop(error))
            with pytest.raises(type(error)):
                do_run(*LORA2, "train.save_steps=3", into=tmp_path)
        assert len(list((tmp_path / "work").glob("*/checkpoint-3"))) == 1


def test_accumulation_equals_one_batch(do_run):
    words = (
        "task=rte",
        "method=lora2",
        "method.init_weights=null",
        "method.init_std=0.3",
        "train.cls_dropout=0",
    )
    words = (*words, "train.max_steps=3")
    whole, parts = do_run(*words), do_run(*words, "train.micro_batch_size=4")
    left, right = weights(whole), weights(parts)
    # Adam's first steps divide tiny gradients by their own size: rounding shows, scaling would too.
    for key in left:
        if "mask" not in key:
            torch.testing.assert_close(left[key], right[key], rtol=1e-3, atol=2e-4)


def test_divergence_is_recorded_with_its_step(do_run, tmp_path):
    words = ("task=stsb", "method=full", "train.learning_rate=1e20", "train.max_grad_norm=1e30")
    with pytest.raises((Diverged, ValueError), match=r"step|NaN"):
        do_run(*words, into=tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    assert status(folder) == "diverged"
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "metrics.csv", "status", "traceback.txt",
    }  # fmt: skip


def test_a_finished_folder_is_never_overwritten(finished):
    with pytest.raises(FileExistsError, match="kept as it is"):
        publish(finished, lambda path: None)
    assert {path.name for path in finished.iterdir()} == FILES


def test_a_failed_write_leaves_nothing(tmp_path):
    def write(path: Path) -> None:
        (path / "half").write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        publish(tmp_path / "runs" / "x", write)
    assert list((tmp_path / "runs").iterdir()) == []


def test_missing_encoder_names_the_ways_out(tmp_path, monkeypatch):
    from lora2.run.model import BackboneError
    from lora2.run.run import run

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words = ["task=rte", "method=lora2", "backbone=minilm", "data.source=embedded", *TINY[1:]]
    words += [f"results.dir={tmp_path}", "backbone.path=nobody/there"]
    with pytest.raises(BackboneError) as caught:
        run(resolve(words).config, progress=False)
    for way in ("HF_HUB_OFFLINE=1 is set", "backbone.path=DIR", "backbone=embedded"):
        assert way in str(caught.value)


def test_best_is_the_first_of_the_highest():
    from types import SimpleNamespace

    from lora2.glue.tasks import TASKS

    recorder = Recorder(TASKS["rte"], {"validation": 2})
    for step, score in ((1, 50.0), (2, 60.0), (3, 60.0)):
        recorder.last = np.array([step, step])
        metrics = {"eval_accuracy": score / 100, "eval_score": score, "eval_loss": 1.0}
        state = SimpleNamespace(global_step=step, epoch=0.1)
        recorder.on_evaluate(None, state, None, metrics=metrics)
    assert recorder.best_row["step"] == 2
    assert list(recorder.best) == [2, 2] and list(recorder.last) == [3, 3]
