"""Write each run as JSON in the layout of PEFT's method_comparison results.

Fields of that layout that runs.csv lacks are null: dates, mean memory, tokens, the settings of a
language model, the score on the test split (its labels are not public).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from lora2.records import store

Line = dict[str, Any]
NO_SETTING = ("compile", "use_gc", "query_template", "autocast_adapter_dtype",
              "generation_kwargs", "init_kv_cache_prefix")  # fmt: skip
ADAMW = {"lr": "learning_rate", "weight_decay": "weight_decay"}
PACKAGES = ("transformers", "peft", "datasets", "bitsandbytes", "torch")


def write(runs: pd.DataFrame, folder: Path) -> Path:
    """Write ``folder``/json/RUN.json for each run; remove the files of other runs."""
    target = folder / "json"
    target.mkdir(exist_ok=True)
    lines = runs.astype(object).where(runs.notna(), None).to_dict("records")
    for line, config in zip(lines, store.settings(runs), strict=True):
        weights = (folder / "runs" / line["run"] / "adapter").glob("*.safetensors")
        size = sum(path.stat().st_size for path in weights) or None
        text = json.dumps(result(line, config, size), indent=2)
        (target / f"{line['run']}.json").write_text(text + "\n", encoding="utf-8")
    for path in set(target.glob("*.json")) - {target / f"{name}.json" for name in runs["run"]}:
        path.unlink()
    return target


def result(line: Line, config: Line, file_size: int | None) -> Line:
    sizes = {name: line.get(f"params_{name}") or 0 for name in ("adapter", "head", "encoder")}
    whole = sizes["encoder"] + sizes["head"]
    on_gpu = not str(line.get("device")).startswith("cpu")
    peak = line.get("peak_memory_mb") if on_gpu else None
    data = {"sha": line.get("data_revision") or None, "created_at": None}
    method = {key[7:]: value for key, value in config.items() if key.startswith("method.")}
    method = {"peft_type": line["method"].upper()} | {k: method[k] for k in method if k != "name"}
    run_info = {
        "created_at": None, "total_time": line.get("train_seconds"),
        "experiment_name": f"{line['method']}/{line['run']}", "peft_branch": None,
        "train_config": _train_config(line, config),
        "peft_config": None if line["method"] == "full" else method,
        "error_msg": line.get("error") or "",
    }  # fmt: skip
    train_info = {
        "accelerator_memory_reserved_avg": None,
        "accelerator_memory_max": int(peak * 2**20) if peak else None,
        "accelerator_memory_reserved_99th": None,
        "train_time": line.get("train_seconds"), "file_size": file_size,
        "num_trainable_params": sizes["adapter"] + sizes["head"],
        "num_total_params": whole + (0 if line["method"] == "full" else sizes["adapter"]),
        "status": "success" if line["status"] == "finished" else "failed",
        "metrics": _metrics(line),
    }  # fmt: skip
    meta_info = {
        "model_info": {"sha": line.get("backbone_revision") or None, "created_at": None},
        "dataset_info": {f"glue/{line['task']}": data},
        "package_info": {f"{name}-version": line.get(name) for name in PACKAGES}
        | dict.fromkeys(f"{name}-commit-hash" for name in PACKAGES),
        "system_info": {"accelerator": line.get("device")},
        "pytorch_info": f"torch {line.get('torch')}, python {line.get('python')}",
    }
    return {"run_info": run_info, "train_info": train_info, "meta_info": meta_info}


def _train_config(line: Line, config: Line) -> Line:
    train = {key.removeprefix("train."): value for key, value in config.items()}
    return dict.fromkeys(NO_SETTING) | {
        "model_id": config.get("backbone.name"),
        "dtype": "float32",  # of the weights; with use_amp, products are in line["precision"]
        "max_seq_length": train.get("max_seq_length"), "batch_size": train.get("batch_size"),
        "batch_size_eval": train.get("eval_batch_size"), "max_steps": line.get("steps"),
        "eval_steps": train.get("eval_steps"), "seed": line["seed"],
        "grad_norm_clip": train.get("max_grad_norm") or 0, "optimizer_type": "AdamW",
        "optimizer_kwargs": {key: train.get(name) for key, name in ADAMW.items()},
        "lr_scheduler": train.get("lr_scheduler"), "use_amp": line.get("precision") != "fp32",
        "attn_implementation": line.get("attention") or None,
    }  # fmt: skip


def _metrics(line: Line) -> list[Line]:
    """Return the metrics at the best step and after the last, fractions as in runs.csv."""
    unknown = ("test accuracy", "train loss", "train total tokens")
    metrics = []
    for kind, step in (("best", line.get("step_best")), ("last", line.get("steps"))):
        scores = {key.replace(f"{kind}_", "valid ", 1): value for key, value in line.items()
                  if key.startswith(f"{kind}_") and value is not None}  # fmt: skip
        samples = (step or 0) * (line.get("batch_size") or 0)
        metrics.append({"step": step, **scores, "train samples": samples, **dict.fromkeys(unknown)})
    return metrics
