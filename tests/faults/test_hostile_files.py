"""Weights, checkpoints, folders from anywhere: nothing in them is run, or leads elsewhere."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lora2.config.load import resolve
from lora2.config.schema import run_name
from lora2.embedded import encoder_path
from lora2.glue.tasks import TASKS
from lora2.records.files import hold, replacing
from lora2.records.run_folder import newest_checkpoint
from lora2.run.model import BackboneError, load_backbone, load_run, read_config
from lora2.run.recorder import Recorder
from lora2.run.run import run
from tests.conftest import TINY

LORA = (*TINY, "task=rte", "method=lora")


class Touch:
    """What runs when it is unpickled: it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def words(*more: str, into: Path) -> list[str]:
    return [*LORA, *more, f"results.dir={into}"]


def encoder(folder: Path, name: str = "embedded") -> Path:
    return Path(shutil.copytree(encoder_path(name), folder))


def load(folder: Path) -> None:
    backbone = resolve([*LORA]).config.backbone
    load_backbone(dataclasses.replace(backbone, path=str(folder)), TASKS["rte"], None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    config = resolve(words(into=tmp_path_factory.mktemp("finished"))).config
    return run(config, progress=False)


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / finished.name))


def test_pickled_weights_of_an_encoder_are_not_unpickled(tmp_path):
    folder = encoder(tmp_path / "encoder")
    (folder / "model.safetensors").unlink()
    torch.save({"x": Touch(tmp_path / "pwned")}, folder / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="could not be loaded"):
        load(folder)
    assert not (tmp_path / "pwned").exists()
    with open(folder / "pytorch_model.bin", "rb") as file:  # the pickle is one that would do it
        torch.load(file, weights_only=False)
    assert (tmp_path / "pwned").exists()


def test_code_beside_an_encoder_is_never_run_nor_asked_about(monkeypatch, tmp_path):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user was asked"))
    folder = encoder(tmp_path / "encoder")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w').close()\n")
    for name in ("config.json", "tokenizer_config.json"):
        values = json.loads((folder / name).read_text())
        values["auto_map"] = {
            "AutoConfig": "evil.Config", "AutoTokenizer": ["evil.Tokenizer", None],
            "AutoModelForSequenceClassification": "evil.Model",
        }  # fmt: skip
        (folder / name).write_text(json.dumps({**values, "model_type": "evil"}))
    with pytest.raises(BackboneError, match="trust_remote_code"):
        load(folder)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "header"])
def test_damaged_weights_of_an_encoder_are_named(tmp_path, damage):
    folder = encoder(tmp_path / "encoder")
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    contents = {"cut": whole[: len(whole) // 2], "empty": b"", "header": b"\xff" * 64 + whole[64:]}
    path.write_bytes(contents[damage])
    with pytest.raises(BackboneError, match=f"the encoder {folder} could not be loaded"):
        load(folder)
    found = resolve([*LORA, f"backbone.path={folder}"])  # its names are only not known
    assert found.config.backbone.path == str(folder)


def test_pickled_weights_of_an_adapter_are_not_unpickled(copied, tmp_path):
    (copied / "adapter" / "adapter_model.safetensors").unlink()
    torch.save({"x": Touch(tmp_path / "pwned")}, copied / "adapter" / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors .*is damaged"):
        load_run(copied)
    assert not (tmp_path / "pwned").exists()


def test_damaged_weights_of_an_adapter_are_named(copied):
    path = copied / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors .*is damaged"):
        load_run(copied)


@pytest.mark.parametrize("change", ["shape", "missing", "unexpected"])
def test_an_adapter_of_another_shape_is_named(copied, change):
    path = copied / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(key for key in tensors if "lora_A" in key)
    if change == "shape":
        tensors[name] = torch.zeros(3, 5)
    elif change == "missing":
        del tensors[name]
    else:
        tensors[name.replace("layer.0", "layer.7").replace("layer.1", "layer.7")] = (
            tensors[name] + 1
        )
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"another encoder or method.*lora_A"):
        load_run(copied)


def test_an_adapter_on_the_wrong_encoder_is_named(copied, tmp_path):
    other = encoder(tmp_path / "other", "embedded-roberta")
    text = (copied / "config.yaml").read_text()
    assert "path: null" in text
    (copied / "config.yaml").write_text(text.replace("path: null", f"path: {other}"))
    with pytest.raises(ValueError, match="another encoder or method"):
        load_run(copied)


def test_an_adapter_of_another_kind_is_refused_before_it_is_loaded(copied):
    path = copied / "adapter" / "adapter_config.json"
    values = json.loads(path.read_text())
    hostile = {**values, "peft_type": "XLORA", "adapters": {"0": "/etc", "1": "nobody/there"}}
    for text in (json.dumps(hostile), "{}", "[]", "{", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"adapter_config\.json"):
            load_run(copied)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: [*a, *a]\n",
        "!!python/object/apply:os.system ['touch pwned']\n",
        "- 1\n",
        "{}\n",
        "method: {name: lora}\ntask: ../../x\n",
        "\x00",
    ],
)
def test_a_configuration_of_a_run_from_anywhere_is_checked(copied, text):
    (copied / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml is no configuration of a run"):
        read_config(copied)


def test_names_in_a_configuration_of_a_run_cannot_lead_elsewhere(copied):
    path = copied / "config.yaml"
    whole = path.read_text()
    for old, new in [("name: lora\n", "name: ../../lora\n"), ("task: rte\n", "task: ../rte\n")]:
        assert old in whole
        path.write_text(whole.replace(old, new))
        with pytest.raises(ValueError, match="is no configuration of a run"):
            read_config(copied)


def test_nothing_is_written_through_a_link(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "results").mkdir()
    for name in (".runs.csv.new", "x.lock"):
        os.symlink(precious, tmp_path / "results" / name)
    with pytest.raises(OSError), replacing(tmp_path / "results" / "runs.csv") as file:
        file.write(b"theirs")
    with pytest.raises(OSError), hold(tmp_path / "results" / "x.lock", wait=False):
        pass
    assert precious.read_text() == "mine"


@pytest.fixture
def stopped(tmp_path, monkeypatch) -> tuple[list[str], Path]:
    """The words of a run that stopped at step 5, and its checkpoint of step 3."""
    asked = words("train.save_steps=3", into=tmp_path / "results")

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise OSError("the machine went away")

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "on_step_begin", stop)
        with pytest.raises(OSError, match="went away"):
            run(resolve(asked).config, progress=False)
    config = resolve(asked).config
    checkpoint = newest_checkpoint(tmp_path / "results" / "work" / run_name(config))
    assert checkpoint is not None and checkpoint.name == "checkpoint-3"
    return asked, checkpoint


def test_a_hostile_or_damaged_checkpoint_is_named_and_never_unpickled(stopped, tmp_path, caplog):
    asked, checkpoint = stopped
    hostile = tmp_path / "hostile"
    torch.save(Touch(tmp_path / "pwned"), hostile)
    plain = np.array(Touch(tmp_path / "pwned"), dtype=object)
    np.savez(tmp_path / "hostile.npz", plain=plain, best=plain, last=plain)
    half = (checkpoint / "adapter_model.safetensors").read_bytes()[:200]
    for name, content in {
        "optimizer.pt": hostile.read_bytes(),
        "scheduler.pt": pickle.dumps(Touch(tmp_path / "pwned")),
        "rng_state.pth": hostile.read_bytes(),
        "recorder.npz": (tmp_path / "hostile.npz").read_bytes(),
        "adapter_model.safetensors": half,
        "trainer_state.json": b"{",
    }.items():
        whole = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(content)
        caplog.clear()
        with pytest.raises((pickle.UnpicklingError, SafetensorError, RuntimeError, ValueError)):
            run(resolve(asked).config, progress=False)
        assert "checkpoint-3: remove it to start again" in caplog.text
        assert not (tmp_path / "pwned").exists(), name
        (checkpoint / name).write_bytes(whole)
    assert run(resolve(asked).config, progress=False).is_dir()
