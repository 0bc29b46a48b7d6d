from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lora2.glue.checks import GlueDataError
from lora2.glue.data import load_task, read_hub
from lora2.glue.tasks import TASKS
from tests.glue.conftest import ROOT
from tests.glue.fake_hub import COMMIT, serving

LOAD = """
import json, time
import datasets
from lora2.glue.checks import GlueDataError
from lora2.glue.data import load_task
start = time.perf_counter()
try:
    data = load_task("rte", "hub")
    answer = {"revision": data.revision, "fingerprint": data.fingerprint, "marks": data.marks}
except GlueDataError as error:
    answer = {"error": str(error)}
print(json.dumps(answer | {"seconds": time.perf_counter() - start}))
"""

CARD = b"""---
configs:
- config_name: rte
  data_files:
  - split: train
    path: rte/train-*
  - split: validation
    path: rte/validation-*
---
"""


def load_in_new_process(home: Path, **environment: str) -> dict:
    dropped = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_DATASETS_CACHE", "HF_HUB_CACHE")
    base = {name: value for name, value in os.environ.items() if name not in dropped}
    run = subprocess.run(
        [sys.executable, "-c", LOAD],
        env=base | {"HF_HOME": str(home), "PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(run.stdout.splitlines()[-1])


def assert_three_ways_out(message: str) -> None:
    for way in ("connect to a network", "hf download", "data.dir=DIR", "backbone=embedded"):
        assert way in message


def test_hub_then_cache_without_network(made, tmp_path):
    folder = made("rte", train=None, validation=None)
    expected = load_task("rte", "folder", dir=folder)
    files = {"README.md": CARD}
    for split in ("train", "validation"):
        content = (folder / "rte" / f"{split}.parquet").read_bytes()
        files[f"rte/{split}-00000-of-00001.parquet"] = content
    with serving(files) as server:
        online = load_in_new_process(tmp_path / "home", HF_ENDPOINT=server.address)
    wanted = {"revision": COMMIT, "fingerprint": expected.fingerprint, "marks": []}
    assert online.items() >= wanted.items()
    gone = load_in_new_process(tmp_path / "home", HF_ENDPOINT=server.address)
    assert gone.items() >= wanted.items()


def test_server_that_never_answers(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        answer = load_in_new_process(tmp_path, HF_ENDPOINT=address)
    assert_three_ways_out(answer["error"])
    assert answer["seconds"] < 10


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return datasets.config


def test_offline_without_cache_answers_at_once(monkeypatch, empty_cache):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("lora2.hub.ask", lambda question: pytest.fail("the network was asked"))
    start = time.perf_counter()
    with pytest.raises(GlueDataError, match="HF_HUB_OFFLINE=1 is set") as error:
        load_task("cola", "hub")
    assert time.perf_counter() - start < 10
    assert_three_ways_out(str(error.value))


def test_blocked_sockets(monkeypatch, empty_cache):
    def refuse(*args, **kwargs):
        raise OSError("sockets are blocked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(GlueDataError, match="sockets are blocked") as error:
        load_task("cola", "hub")
    assert_three_ways_out(str(error.value))
    assert empty_cache.HF_HUB_OFFLINE is False


def test_name_lookup_that_hangs_is_given_up(monkeypatch, empty_cache):
    release = threading.Event()

    def hang(*args, **kwargs):
        release.wait(60)
        raise OSError("released")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr("lora2.hub.PROBE_SECONDS", 0.5)
    start = time.perf_counter()
    with pytest.raises(GlueDataError, match=r"did not answer within 0\.5 s") as error:
        load_task("cola", "hub")
    assert time.perf_counter() - start < 5
    release.set()
    assert_three_ways_out(str(error.value))


def test_trouble_after_the_probe_is_told(monkeypatch, empty_cache):
    import datasets

    def fail(*args, **kwargs):
        raise RuntimeError("disk is full")

    monkeypatch.setattr("lora2.hub.ask", lambda question: (COMMIT, None))
    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(GlueDataError, match="RuntimeError: disk is full"):
        read_hub(TASKS["rte"], ("train",))
