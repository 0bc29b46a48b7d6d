"""The two examples of docs/new-method.md, run as they stand there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

import lora2.tuners
from lora2.config.load import resolve
from lora2.config.parse import CONFIGS
from lora2.run.run import run
from tests.conftest import TINY

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "new-method.md").read_text()


def block(after: str, language: str) -> str:
    """The first code block of ``language`` behind the words ``after``."""
    found = re.search(rf"```{language}\n(.*?)```", PAGE[PAGE.index(after) :], re.DOTALL)
    assert found is not None
    return found.group(1)


@pytest.fixture
def configs(tmp_path):
    copy = tmp_path / "configs"
    shutil.copytree(CONFIGS, copy)
    return copy


def test_one_yaml_for_a_method_that_peft_has(configs, tmp_path):
    shown = block("`configs/method/vera.yaml`", "yaml")
    (configs / "method" / "mine.yaml").write_text(shown.replace("name: vera", "name: mine"))
    (words,) = re.findall(r"run_glue.py (task=rte method=vera .*)", PAGE)
    words = [*words.replace("=vera", "=mine").split(), *TINY, f"results.dir={tmp_path / 'results'}"]
    done = run(resolve(words, configs).config, progress=False)
    row = pd.read_csv(done / "metrics.csv").iloc[0]
    assert (row["status"], row["method"]) == ("finished", "mine")
    # In each of 2 layers: b is as long as what a matrix gives, d as r, in six matrices.
    assert row["params_adapter"] == 2 * (5 * 64 + 384 + 6 * 64)


def test_the_example_of_one_yaml_is_the_file_that_is_shipped():
    shown = yaml.safe_load(block("`configs/method/vera.yaml`", "yaml"))
    shipped = yaml.safe_load((CONFIGS / "method" / "vera.yaml").read_text())
    for key in ("name", "type", "target_modules", "args"):
        assert shown[key] == shipped[key]
    assert shown["settings"][0] in shipped["settings"]


def test_one_folder_and_one_yaml(configs, tmp_path, monkeypatch):
    folder = tmp_path / "tuners" / "lora_fa"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(block("lora2/tuners/lora_fa/__init__.py", "python"))
    (configs / "method" / "lora_fa.yaml").write_text(block("configs/method/lora_fa.yaml", "yaml"))
    monkeypatch.setattr(lora2.tuners, "__path__", [*lora2.tuners.__path__, str(folder.parent)])
    words = ["task=rte", "method=lora_fa", *TINY, f"results.dir={tmp_path / 'results'}"]
    done = run(resolve(words, configs).config, progress=False)
    row = pd.read_csv(done / "metrics.csv").iloc[0]
    assert row["status"] == "finished"
    assert row["params_adapter"] == 2 * 2 * 4 * 64  # 2 layers, query and value, r = 4, d_out = 64
