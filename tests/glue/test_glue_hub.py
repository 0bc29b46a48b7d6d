from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pandas as pd
import pytest

from lora2.glue.checks import GlueDataError
from lora2.glue.data import load_task, read_hub
from lora2.glue.tasks import TASKS
from tests.glue.conftest import ROOT
from tests.glue.fake_hub import COMMIT

# Rows of the official test splits, without labels.
HIDDEN = {("mnli", "test_matched"): 9796, ("mnli", "test_mismatched"): 9847, ("ax", "test"): 1104}
LOAD = """
import json, os, sys
from pathlib import Path
from tests.glue.fake_hub import serving
folder = Path(sys.argv[1])
files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}
with serving(files) as server:
    os.environ["HF_ENDPOINT"] = server.address  # before datasets is imported
    from lora2.glue.data import load_task, load_test
    online = load_task("rte", "hub")
    hidden = load_test("mnli", "hub", None)
cached = load_task("rte", "hub")
for data in (online, cached):
    print(json.dumps([data.revision, data.fingerprint, data.marks]))
print(json.dumps({split: [len(rows), *set(rows["label"])] for split, rows in hidden.items()}))
"""

CARD = b"""---
configs:
- config_name: rte
  data_files:
  - split: train
    path: rte/train-*
  - split: validation
    path: rte/validation-*
- config_name: mnli
  data_files:
  - split: test_matched
    path: mnli/test_matched-*
  - split: test_mismatched
    path: mnli/test_mismatched-*
- config_name: ax
  data_files:
  - split: test
    path: ax/test-*
---
"""


def assert_three_ways_out(message: str) -> None:
    for way in ("connect to a network", "hf download", "data.dir=DIR", "backbone=embedded"):
        assert way in message


def test_hub_then_cache_without_network(made, tmp_path):
    folder = made("rte", train=None, validation=None)
    expected = load_task("rte", "folder", dir=folder)
    (tmp_path / "hub" / "rte").mkdir(parents=True)
    (tmp_path / "hub" / "README.md").write_bytes(CARD)
    for split in ("train", "validation"):
        shard = tmp_path / "hub" / "rte" / f"{split}-00000-of-00001.parquet"
        shard.write_bytes((folder / "rte" / f"{split}.parquet").read_bytes())
    for (config, split), rows in HIDDEN.items():
        (tmp_path / "hub" / config).mkdir(exist_ok=True)
        texts = [f"Sentence {number}." for number in range(rows)]
        frame = pd.DataFrame({"premise": texts, "hypothesis": texts, "label": -1})
        shard = tmp_path / "hub" / config / f"{split}-00000-of-00001.parquet"
        frame.assign(idx=range(rows)).to_parquet(shard)
    dropped = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_DATASETS_CACHE", "HF_HUB_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "hub")],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wanted = [COMMIT, expected.fingerprint, []]
    hidden = {split if split != "test" else "ax": [rows, -1] for (_, split), rows in HIDDEN.items()}
    printed = [json.loads(line) for line in done.stdout.splitlines()[-3:]]
    assert printed == [wanted, wanted, hidden]


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


def test_server_that_never_answers(monkeypatch, empty_cache):
    import huggingface_hub.constants

    monkeypatch.setattr("lora2.hub.PROBE_SECONDS", 0.5)
    start = time.perf_counter()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        with pytest.raises(GlueDataError, match=r"Timeout|did not answer") as error:
            load_task("cola", "hub")
    assert time.perf_counter() - start < 5
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

    monkeypatch.setattr("lora2.hub.ask", lambda question: (SimpleNamespace(sha=COMMIT), None))
    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(GlueDataError, match="RuntimeError: disk is full"):
        read_hub(TASKS["rte"], ("train",))
