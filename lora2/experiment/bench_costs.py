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

    Only rows with the encoder's full size and the run's precision count. A row of the same method
    with another rank may stand for a run, and all are scaled by tokens; what had another rank, or
    another length by a quarter, is marked as not measured. Says which file was used.
    """
    folder, costs = RESULTS / slug(device_name()), Costs()
    for name in FILES:
        lines, before = _lines(folder / name), len(costs)
        for key, job in wanted.items():
            line = None if key in costs else _line_for(job, lines)
            if line is not None:
                costs[key] = _cost(job, line)
        if len(costs) > before:
            tell(f"  {len(costs) - before} of {len(wanted)} costs from {folder / name}")
    return costs


def _lines(path: Path) -> list[Line]:
    """Return the training rows of a bench file; none if it is not there."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [line for line in csv.DictReader(file) if line.get("phase", "train") == "train"]


def _line_for(job: Job, lines: list[Line]) -> Line | None:
    config = job.resolved.config
    if config.backbone.name not in SHAPES or config.data.source == "embedded":
        return None
    fit = [line for line in lines if _fits(line, config)]
    return next((line for line in fit if line["row"] == job.row), fit[0] if fit else None)


def _fits(line: Line, config: RunConfig) -> bool:
    full = shaped(config.backbone.name)
    return (
        line["encoder"] == config.backbone.name
        and (int(line["layers"]), int(line["width"])) == (full.num_hidden_layers, full.hidden_size)
        and line["precision"] == config.train.precision
        and line["method"] == config.method.name
        and line.get("task", config.task) == config.task
    )


def _cost(job: Job, line: Line) -> Cost:
    ratio = batch_tokens(job) / (float(line["tokens"]) * int(line["batch"]))
    return Cost(
        float(line["seconds"]) * ratio,
        int(line["trainable"]),
        float(line["memory_mib"]) * max(1.0, ratio),
        line["row"] == job.row and 1 / NEAR < ratio < NEAR,
    )
