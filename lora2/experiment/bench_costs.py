"""What the bench of this device (``make bench``) tells about the costs of a table's runs."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path

from lora2.bench.encoders import SHAPES, shaped
from lora2.bench.record import RESULTS, slug
from lora2.experiment.plan import Cost, Costs, Key, batch_tokens
from lora2.experiment.provenance import device_name
from lora2.experiment.schema import RunConfig
from lora2.experiment.tableplan import Job

Line = dict[str, str]
FILES = ("table2.csv", "step.csv")  # the first that holds a run's encoder and method is taken
NEAR = 1.25  # a batch of so many times more or fewer tokens counts as measured


def known(wanted: Mapping[Key, Job], tell: Callable[[str], None] = print) -> Costs:
    """Return the costs of those of ``wanted`` that a bench on this device tells.

    Only rows that ``same_encoder`` takes count. A row of the same method with another rank may
    stand for a run, and all are scaled by tokens; what had another rank, or another length by a
    quarter, is marked as not measured. Says which file was used.
    """
    folder, costs = RESULTS / slug(device_name()), Costs()
    for name in FILES:
        own, before = lines(folder / name), len(costs)
        for key, job in wanted.items():
            line = None if key in costs else _line_for(job, own)
            if line is not None:
                costs[key] = _cost(job, line)
        if len(costs) > before:
            tell(f"  {len(costs) - before} of {len(wanted)} costs from {folder / name}")
    return costs


def lines(path: Path) -> list[Line]:
    """Return the training rows of a bench file; none if it is not there."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [line for line in csv.DictReader(file) if line.get("phase", "train") == "train"]


def same_encoder(line: Line, config: RunConfig) -> bool:
    """Tell whether ``line`` was measured on the run's encoder in full and computed as the run is.

    A bench has no TF32 and each encoder's default attention.
    """
    backbone, train = config.backbone, config.train
    if backbone.name not in SHAPES or config.data.source == "embedded":
        return False
    full = shaped(backbone.name)
    wanted = {
        "encoder": backbone.name,
        "layers": str(full.num_hidden_layers),
        "width": str(full.hidden_size),
        "precision": train.precision,
    }
    return wanted.items() <= line.items() and not train.tf32 and backbone.attention is None


def _line_for(job: Job, own: list[Line]) -> Line | None:
    config = job.resolved.config
    fit = [line for line in own if _fits(line, config)]
    return next((line for line in fit if line["row"] == job.row), fit[0] if fit else None)


def _fits(line: Line, config: RunConfig) -> bool:
    return (
        same_encoder(line, config)
        and line["method"] == config.method.name
        and line.get("task", config.task) == config.task
    )


def _cost(job: Job, line: Line) -> Cost:
    """Scale by tokens all but the weights and optimiser state; in a file without them, too much."""
    ratio = batch_tokens(job) / (float(line["tokens"]) * int(line["batch"]))
    peak, held = float(line["memory_mib"]), float(line.get("held_mib") or 0)
    return Cost(
        float(line["seconds"]) * ratio,
        int(line["trainable"]),
        held + (peak - held) * max(1.0, ratio),
        line["row"] == job.row and 1 / NEAR < ratio < NEAR,
        held,
    )
