"""Runs as JSON in the layout of huggingface/peft, method_comparison (log_results in its utils)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora2.records import store
from lora2.tables import peft_results
from tests.tables.synthetic import make_run

KEYS = {
    "": "run_info train_info meta_info",
    "run_info": "created_at total_time experiment_name peft_branch train_config peft_config "
    "error_msg",
    "train_info": "accelerator_memory_reserved_avg accelerator_memory_max "
    "accelerator_memory_reserved_99th train_time file_size num_trainable_params num_total_params "
    "status metrics",
    "meta_info": "model_info dataset_info package_info system_info pytorch_info",
    "meta_info.model_info": "sha created_at",
    "run_info.train_config": "model_id dtype max_seq_length batch_size batch_size_eval max_steps "
    "eval_steps compile use_gc query_template seed grad_norm_clip optimizer_type optimizer_kwargs "
    "lr_scheduler use_amp autocast_adapter_dtype generation_kwargs attn_implementation "
    "init_kv_cache_prefix",
    "meta_info.package_info": " ".join(
        f"{name}-version {name}-commit-hash"
        for name in ("transformers", "peft", "datasets", "bitsandbytes", "torch")
    ),
}


def at(tree: dict, place: str) -> dict:
    for name in place.split("."):
        tree = tree[name] if name else tree
    return tree


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_run(tmp_path, "a", settings={"r": 8, "k": 1}, score=0.8, last=0.7, step_best=60)
    make_run(tmp_path, "b", method="full", device="NVIDIA X", peak_memory_mb=2.0)
    make_run(tmp_path, "c", status="diverged", error="loss is nan", data_revision="d1")
    (tmp_path / "runs" / "a" / "adapter").mkdir()
    (tmp_path / "runs" / "a" / "adapter" / "adapter_model.safetensors").write_bytes(b"12345")
    return tmp_path


def written(folder: Path) -> dict[str, dict]:
    target = peft_results.write(store.collect(folder), folder)
    return {path.stem: json.loads(path.read_text()) for path in target.iterdir()}


@pytest.mark.parametrize("place", KEYS)
def test_a_file_has_the_keys_of_pefts_results(folder: Path, place: str) -> None:
    for tree in written(folder).values():
        assert set(at(tree, place)) == set(KEYS[place].split())


def test_values_are_those_of_the_run(folder: Path) -> None:
    files = written(folder)
    run, train = files["a"]["run_info"], files["a"]["train_info"]
    assert run["peft_config"] == {"peft_type": "LORA2", "r": 8, "k": 1}
    assert run["experiment_name"] == "lora2/a" and run["total_time"] == 50.0
    assert (train["status"], train["file_size"]) == ("success", 5)
    assert train["accelerator_memory_max"] is None  # measured on a processor
    assert train["num_trainable_params"] == 167616 + 592130
    assert train["num_total_params"] == 167616 + 592130 + 183831552
    best, last = train["metrics"]
    assert (best["step"], best["valid accuracy"]) == (60, 0.8)
    assert (last["step"], last["valid accuracy"]) == (100, 0.7)
    assert {"test accuracy", "train loss", "train samples", "train total tokens"} <= set(last)
    full = files["b"]
    assert full["run_info"]["peft_config"] is None and full["train_info"]["file_size"] is None
    assert full["train_info"]["accelerator_memory_max"] == 2 * 2**20
    assert full["train_info"]["num_total_params"] == 592130 + 183831552
    diverged = files["c"]
    assert diverged["train_info"]["status"] == "failed"
    assert diverged["run_info"]["error_msg"] == "loss is nan"
    assert diverged["meta_info"]["dataset_info"] == {"glue/rte": {"sha": "d1", "created_at": None}}


def test_files_of_runs_that_are_gone_are_removed(folder: Path) -> None:
    runs = store.collect(folder)
    peft_results.write(runs, folder)
    peft_results.write(runs.loc[runs["run"] != "b"], folder)
    assert sorted(path.stem for path in (folder / "json").iterdir()) == ["a", "c"]
