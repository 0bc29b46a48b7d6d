"""What a run folder holds: configuration, metrics, history, predictions, ranks, weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from safetensors.torch import save_file
from torch import nn

from lora2.config.load import as_tree
from lora2.config.schema import RunConfig
from lora2.glue.data import GlueData
from lora2.records.store import as_csv

HISTORY = "history.csv"


def write_common(folder: Path, config: RunConfig, row: Mapping[str, Any]) -> None:
    """Write config.yaml, metrics.csv (one row) and status."""
    (folder / "config.yaml").write_text(yaml.safe_dump(as_tree(config), sort_keys=False))
    (folder / "metrics.csv").write_bytes(as_csv(pd.DataFrame([dict(row)])).encode())
    (folder / "status").write_text(f"{row['status']}\n")


def write_history(folder: Path, history: list[dict[str, float]]) -> None:
    """Write history.csv, a row per evaluation."""
    pd.DataFrame(history).to_csv(folder / HISTORY, index=False)


def write_predictions(folder: Path, data: GlueData, best: np.ndarray, last: np.ndarray) -> None:
    """Write predictions.parquet: split, idx, label and the best and last predictions, (n,) each."""
    parts = [
        pd.DataFrame({"split": split, "idx": frame["idx"], "label": frame["label"]})
        for split, frame in data.validation.items()
    ]
    frame = pd.concat(parts, ignore_index=True)
    frame["best"], frame["last"] = best, last
    frame.to_parquet(folder / "predictions.parquet", index=False)


def write_ranks(folder: Path, kept: Mapping[str, list[bool]], targets: Mapping[Any, str]) -> None:
    """Write ranks.csv: a row per singular value (or gate), with the layer and matrix it is of.

    ``kept`` maps module names to what survives; ``targets`` maps our names of matrices to paths.
    """
    names = {path: name for name, path in targets.items()}
    rows = []
    for module, row in kept.items():
        layer, path = split_module(module)
        where = {"module": module, "layer": layer, "matrix": names.get(path, path)}
        rows += [{**where, "index": i, "kept": int(keep)} for i, keep in enumerate(row)]
    frame = pd.DataFrame(rows, columns=["module", "layer", "matrix", "index", "kept"])
    frame.to_csv(folder / "ranks.csv", index=False)


def split_module(name: str) -> tuple[int, str]:
    """Split ``...encoder.layer.3.attention.self.query`` into (3, ``attention.self.query``)."""
    _, _, rest = name.rpartition(".layer.")
    layer, _, path = rest.partition(".")
    return (int(layer), path) if layer.isdigit() else (-1, name)


def save_weights(folder: Path, model: nn.Module) -> None:
    """Save what was trained as safetensors: a PEFT adapter, or the trainable parameters."""
    adapter = folder / "adapter"
    if hasattr(model, "peft_config"):
        model.save_pretrained(str(adapter))
        return
    adapter.mkdir()
    trained = {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    save_file(trained, str(adapter / "trainable.safetensors"))
