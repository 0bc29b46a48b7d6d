"""A run that starts from another's encoder, and trackers: what names a run and what does not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from lora2.config.load import resolve
from lora2.config.problems import ConfigError
from lora2.config.schema import RunConfig, config_hash
from lora2.glue.data import tokenize
from lora2.glue.tasks import TASKS
from lora2.records.run_folder import run_dir, status_of
from lora2.records.store import read_run
from lora2.run.model import load_run, load_start
from lora2.run.run import load_data, run
from lora2.run.trainer import training_arguments
from lora2.tables.build import comparable
from tests.conftest import TINY
from tests.run.test_run import assert_same_run

RTE = (*TINY, "task=rte", "method=lora")


@pytest.fixture(scope="module", params=["lora2", "full"])
def source(request, do_run) -> Path:
    return do_run("task=mnli", f"method={request.param}", "train.learning_rate=1e-2")


def warm(folder: Path, *words: str):
    return resolve([*RTE, f"backbone.warm_start={folder}", *words]).config


def test_encoder_is_the_sources_and_the_head_is_the_seeds(source):
    _, started = load_start(warm(source))
    _, cold = load_start(resolve([*RTE]).config)
    _, trained = load_run(source)
    if hasattr(trained, "merge_and_unload"):
        trained = trained.merge_and_unload()
    names = {name for name, _ in started.named_parameters()}
    encoder = {name for name in names if name.startswith("deberta.")}
    mine, cold_ones, theirs = (dict(m.named_parameters()) for m in (started, cold, trained))
    assert all(torch.equal(mine[name], theirs[name]) for name in encoder)
    assert any(not torch.equal(mine[name], cold_ones[name]) for name in encoder)
    assert all(torch.equal(mine[name], cold_ones[name]) for name in names - encoder)


def test_a_warm_run_is_named_by_the_run_it_starts_from_and_marked(source, do_run, tmp_path):
    words = ("task=rte", "method=lora", f"backbone.warm_start={source}")
    folder = do_run(*words)
    moved = Path(shutil.copytree(source, tmp_path / source.name))
    assert (
        config_hash(warm(moved)) == config_hash(warm(source)) != config_hash(resolve([*RTE]).config)
    )
    assert f"warm start from {source.name}" in pd.read_csv(folder / "metrics.csv")["data_marks"][0]
    assert f'"backbone.warm_start": "{source.name}"' in read_run(folder).loc[0, "config"]
    assert comparable({"backbone.warm_start": str(moved)}) == {"backbone.warm_start": moved.name}
    assert_same_run(folder, do_run(*words))
    frame = pd.read_parquet(folder / "predictions.parquet")
    assert list(frame["last"][::4]) == classes(folder, warm(source))


def classes(folder: Path, config: RunConfig) -> list[int]:
    """What the reloaded model says of every fourth validation row: on the warm encoder."""
    tokenizer, model = load_run(folder)
    (frame,) = load_data(config).validation.values()
    rows = tokenize(frame[::4], TASKS["rte"], tokenizer, config.train.max_seq_length)
    rows = rows.remove_columns("labels").with_format("torch")
    with torch.no_grad():
        return [int(model(**{k: v[None] for k, v in r.items()}).logits.argmax()) for r in rows]


@pytest.mark.parametrize("wrong", ["nowhere", "unfinished", "other"])
def test_what_cannot_be_started_from_is_refused_before_training(source, tmp_path, wrong):
    folder, words = tmp_path / "x", (f"results.dir={tmp_path}",)
    if wrong != "nowhere":
        shutil.copytree(source, folder)
    if wrong == "unfinished":
        (folder / "status").write_text("failed\n")
    if wrong == "other":
        words += ("backbone=embedded-roberta",)
    config = warm(folder, *words)
    with pytest.raises(ConfigError, match=r"backbone\.warm_start = .* cannot be started from"):
        run(config, progress=False)
    assert status_of(config) is None


def test_a_tracker_that_is_not_installed_is_refused_by_name(monkeypatch, tmp_path):
    config = resolve([*RTE, "train.report_to=[mlflow]", f"results.dir={tmp_path}"]).config
    monkeypatch.setattr(
        "lora2.run.device.get_available_reporting_integrations", lambda: ["tensorboard"]
    )
    with pytest.raises(ConfigError, match=r"report_to = 'mlflow': is not installed.*tensorboard"):
        run(config, progress=False)


def test_a_tracker_gets_the_runs_scores_and_names_no_run(monkeypatch, tmp_path):
    logged = []

    class Board(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            logged.append((args.run_name, set(logs)))

    known = dict(integration_utils.INTEGRATION_TO_CALLBACK, tensorboard=Board)
    monkeypatch.setattr(integration_utils, "INTEGRATION_TO_CALLBACK", known)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    monkeypatch.setattr(
        "lora2.run.device.get_available_reporting_integrations", lambda: ["tensorboard"]
    )
    plain = resolve([*RTE, f"results.dir={tmp_path}"]).config
    config = resolve([*RTE, "train.report_to=[tensorboard]", f"results.dir={tmp_path}"]).config
    assert run_dir(config) == run_dir(plain) == run(config, progress=False)
    assert {name for name, _ in logged} == {run_dir(config).name}
    assert any("eval_score" in names for _, names in logged)
    tracked = str(run_dir(config)).replace("/runs/", "/tracking/")
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == tracked
    assert training_arguments(plain, 6, tmp_path, False).report_to == []
