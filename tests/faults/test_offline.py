"""No hub, or one that hangs: an answer within seconds, with the ways out, before any run begins."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from lora2.config.load import resolve
from lora2.glue.tasks import TASKS
from lora2.hub import PROBE_SECONDS, check_available
from lora2.run.model import BackboneError, load_backbone
from tests.faults import refusals
from tests.faults.refusals import ROOT

SECONDS = 10
PAPER = ("task=rte", "method=lora2")
TABLE = ("table=1", "profile=paper", "tasks=rte,cola", "rows=lora2-k8,full")
NEEDED = (
    "the encoder microsoft/deberta-v3-base is not available",
    "the data nyu-mll/glue is not available",
)
WAYS_OUT = (
    "Three ways out", "connect to a network",
    "hf download microsoft/deberta-v3-base --local-dir DIR",
    "hf download nyu-mll/glue --repo-type dataset --local-dir DIR",
    "backbone.path=DIR", "data.dir=DIR", "backbone=embedded", "profile=embedded",
)  # fmt: skip


@contextmanager
def silent_hub():
    """An address that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return constants


def processor_seconds() -> float:
    """Return what all finished child processes have used."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def assert_all_said(printed: str, results: Path) -> None:
    for words in (*NEEDED, *WAYS_OUT):
        assert words in printed
    assert "Traceback" not in printed
    assert not list(results.glob("runs/*"))  # no run is on record as failed: none was begun


def test_a_hub_that_hangs_is_given_up_within_seconds(tmp_path):
    """Both scripts wait for it at the same time."""
    dropped = ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "home")}
    scripts = (("run_glue", *PAPER), ("reproduce", *TABLE))
    with silent_hub() as address:
        started, used = time.perf_counter(), processor_seconds()
        processes = [
            subprocess.Popen(
                [sys.executable, f"scripts/{script}.py", *words, f"results.dir={tmp_path}/results"],
                cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                env=environment | {"HF_ENDPOINT": address},
            )
            for script, *words in scripts
        ]  # fmt: skip
        printed = [process.communicate(timeout=60)[1] for process in processes]
        seconds, used = time.perf_counter() - started, processor_seconds() - used
    assert [process.returncode for process in processes] == [1, 1]
    for text in printed:
        assert_all_said(text, tmp_path / "results")
    assert PROBE_SECONDS + used / len(scripts) < SECONDS
    assert seconds < 3 * SECONDS  # on a machine that other tests share; 6 s where none do


@pytest.mark.parametrize("words", [("run_glue", *PAPER), ("reproduce", *TABLE)], ids=lambda w: w[0])
@pytest.mark.parametrize("trouble", ["off", "refused", "no such name"])
def test_without_a_hub_both_scripts_name_what_they_lack_at_once(
    monkeypatch, empty_cache, tmp_path, words, trouble, capsys
):
    if trouble == "off":
        monkeypatch.setattr(empty_cache, "HF_HUB_OFFLINE", True)
    elif trouble == "refused":
        monkeypatch.setattr(empty_cache, "ENDPOINT", "http://127.0.0.1:9")
    else:
        monkeypatch.setattr(empty_cache, "ENDPOINT", "http://hub.invalid")
    script, *words = words
    module = refusals.fresh(script)
    started = time.perf_counter()
    assert module.main([*words, f"results.dir={tmp_path}/results"]) == 1
    assert time.perf_counter() - started < SECONDS
    assert_all_said(capsys.readouterr().err, tmp_path / "results")


def test_what_lies_in_folders_or_caches_is_not_asked_for(monkeypatch, empty_cache, tmp_path):
    monkeypatch.setattr("lora2.hub.ask", lambda question: pytest.fail("the hub was asked"))
    check_available(resolve([*PAPER, "backbone=embedded"]).config.hub_needs())
    for name in ("models--microsoft--deberta-v3-base", "datasets--nyu-mll--glue"):
        (tmp_path / "hub" / name / "snapshots").mkdir(parents=True)
    check_available(resolve(list(PAPER)).config.hub_needs())


@pytest.mark.parametrize("lacking", ["tokenizer", "weights", "config"])
def test_a_folder_that_is_not_whole_is_named_without_asking_the_hub(monkeypatch, tmp_path, lacking):
    from lora2.embedded import encoder_path

    def refuse(*args, **kwargs):
        pytest.fail("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    files = {"tokenizer": "tokenizer*.json", "weights": "*.safetensors", "config": "config.json"}
    left_out = {path.name for path in encoder_path("embedded").glob(files[lacking])}
    for path in encoder_path("embedded").iterdir():
        if path.name not in left_out:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    backbone = resolve([*PAPER, "backbone=embedded"]).config.backbone
    backbone = dataclasses.replace(backbone, path=str(tmp_path))
    with pytest.raises(BackboneError, match=r"could not be loaded|are its files there\?") as error:
        load_backbone(backbone, TASKS["rte"], None)
    for way in ("Three ways out", "backbone.path=DIR", "backbone=embedded"):
        assert way in str(error.value)


def test_a_tokenizer_of_another_encoder_is_named(tmp_path):
    from lora2.embedded import encoder_path

    shutil.copytree(encoder_path("embedded"), tmp_path / "mixed")
    path = tmp_path / "mixed" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    assert tokenizer["model"]["type"] == "WordLevel"
    tokenizer["model"]["vocab"]["unheard"] = len(tokenizer["model"]["vocab"]) + 1000
    path.write_text(json.dumps(tokenizer))
    backbone = resolve([*PAPER, "backbone=embedded"]).config.backbone
    backbone = dataclasses.replace(backbone, path=str(path.parent))
    with pytest.raises(BackboneError, match="are they of two encoders"):
        load_backbone(backbone, TASKS["rte"], None)


def test_an_embedded_run_asks_nothing_of_any_network(monkeypatch, tmp_path):
    from lora2.run.run import run
    from tests.conftest import TINY

    def refuse(*args, **kwargs):
        pytest.fail("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    words = [*TINY, "task=rte", "method=lora", f"results.dir={tmp_path}"]
    assert run(resolve(words).config, progress=False).is_dir()
