"""Refuse impossible combinations of values, each of which alone would be allowed.

Checked from the words and files alone, before anything heavy is imported.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora2.config.problems import Problem
from lora2.glue.tasks import TASKS

# A name on the hub: OWNER/NAME, or the few old ones without an owner.
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
NAME_BYTES = 255  # of one part of a path, on any file system in use
SCHEDULE = ("tinit", "tfinal", "deltaT", "beta1", "beta2", "importance")
Section = dict[str, Any]
Found = Iterator[Problem]


@dataclasses.dataclass(frozen=True)
class Checked:
    """The values of a run whose type is right; keys of a wrong type are left out.

    ``steps`` is the run's length and ``rows`` what it trains on, None where not known yet;
    ``typed`` are the keys given on the command line.
    """

    task: str
    method: Section
    train: Section
    data: Section
    backbone: Section
    results: Section
    steps: int | None
    rows: int | None
    typed: set[str]


def check_combinations(run: Checked) -> list[Problem]:
    """Return every impossible combination."""
    checks = (
        _no_effect, _schedule, _intervals, _batch, _data, _holdout, _backbone, _targets, _gates,
        _results,
    )  # fmt: skip
    found = [problem for check in checks for problem in check(run)]
    sizes = folder_sizes(run.backbone)
    return found + list(check_encoder(run.task, run.method, run.train.get("max_seq_length"), sizes))


def _no_effect(run: Checked) -> Found:
    """Yield the typed keys that another value leaves without any effect."""
    train, method = run.train, run.method
    steps, target = train.get("max_steps"), method.get("target_r")
    terms = method.get("orthogonality")
    full_rank = "target_r" in method and target in (None, method.get("init_r", method.get("r")))
    warmup = [f"train.{key}" for key in ("warmup_steps", "warmup_ratio") if train.get(key)]
    cases = (
        (steps is not None, f"train.max_steps is {steps}", "train.max_steps=null beside it",
         ["train.num_train_epochs"]),
        (train.get("lr_scheduler") == "constant", "train.lr_scheduler is constant",
         "train.lr_scheduler=constant_with_warmup beside it", warmup),
        (full_rank, f"method.target_r is {target}: no rank is pruned", "",
         [f"method.{key}" for key in SCHEDULE]),
        (method.get("init_weights") == "orthogonal", "method.init_weights is orthogonal", "",
         ["method.init_std"]),
        (terms == "none", "method.orthogonality is none", "",
         ["method.orth_reg_weight", "method.orth_squared"]),
        (terms not in (None, "none") and method.get("orth_reg_weight") == 0,
         "method.orth_reg_weight is 0", "", ["method.orthogonality", "method.orth_squared"]),
    )  # fmt: skip
    for holds, reason, allowed, keys in cases:
        for key in keys if holds else ():
            section, name = key.split(".")
            if key in run.typed and name in getattr(run, section):
                value = getattr(run, section)[name]
                yield Problem(key, value, allowed, f"has no effect while {reason}")
    path, revision = run.backbone.get("path"), run.backbone.get("revision")
    if revision is not None and (path is None or Path(path).is_dir()):
        yield Problem("backbone.revision", revision, "null", "a folder has no revisions")


def _schedule(run: Checked) -> Found:
    """Yield ranks that grow, and a schedule of pruning that does not fit the run's steps."""
    method, steps = run.method, run.steps
    start = "init_r" if "init_r" in method else "r"
    rank, target = method.get(start), method.get("target_r")
    if None not in (rank, target) and target > rank:
        yield Problem("method.target_r", target, f"at most method.{start}, which is {rank}")
    tinit, tfinal, every = (method.get(key) for key in ("tinit", "tfinal", "deltaT"))
    if target == rank or None in (target, tinit, tfinal, every, steps):
        return
    pruned, last = steps - tinit - tfinal, method.get("name") == "lora2"
    if pruned <= 0:
        allowed = f"less than the run's {steps} steps; without both, the published ones are fitted"
        wrong = "the ranks would never be allocated"
        yield Problem("method.tinit + method.tfinal", tinit + tfinal, allowed, wrong)
    elif every > pruned:
        allowed = f"at most the {pruned} steps in which ranks are pruned, tinit to -tfinal"
        yield Problem("method.deltaT", every, allowed)
    elif last and tfinal > steps - 2:
        yield Problem("method.tfinal", tfinal, f"at most {steps - 2}: a step must be scored")
    elif last and tfinal == 0 and steps % every:
        allowed = f"a divisor of the run's {steps} steps while method.tfinal is 0"
        yield Problem("method.deltaT", every, allowed, "the target would never be reached")


def _intervals(run: Checked) -> Found:
    """Yield what is longer than the run, and what its learning rate's schedule excludes."""
    train, steps = run.train, run.steps
    if steps is not None:
        if train.get("warmup_steps", 0) >= steps:
            allowed = f"less than the run's {steps} steps"
            yield Problem("train.warmup_steps", train["warmup_steps"], allowed)
        for key in ("train.eval_steps", "train.save_steps", "method.xi_stages"):
            section, name = key.split(".")
            value = getattr(run, section).get(name)
            if value and value > steps and (key in run.typed or section == "method"):
                yield Problem(key, value, f"at most the run's {steps} steps")
    if train.get("warmup_ratio") and train.get("warmup_steps"):
        yield Problem("train.warmup_ratio", train["warmup_ratio"], "0 beside train.warmup_steps")
    if run.method.get("name") == "sora" and train.get("lr_scheduler") not in ("linear", None):
        allowed = "linear with method=sora: its gates follow that schedule"
        yield Problem("train.lr_scheduler", train["lr_scheduler"], allowed)


def _batch(run: Checked) -> Found:
    batch, micro = run.train.get("batch_size"), run.train.get("micro_batch_size")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if batch is None:
        return
    if run.rows is not None and batch > run.rows > 0:
        yield Problem("train.batch_size", batch, f"at most the {run.rows} training rows")
    if batch % world:
        yield Problem("train.batch_size", batch, f"a multiple of the {world} processes launched")
    elif micro is not None and (batch // world) % micro:
        allowed = f"a divisor of {batch // world} examples per process"
        yield Problem("train.micro_batch_size", micro, allowed)


def _data(run: Checked) -> Found:
    data, folder = run.data, run.data.get("dir")
    source, chosen = data.get("source"), data.get("validation")
    splits = TASKS[run.task].validation_splits if run.task in TASKS else ()
    if source == "folder" and folder is None:
        yield Problem("data.dir", None, "data.dir=DIR with <task>/train.parquet in it")
    if folder is not None and source in ("hub", "embedded"):
        yield Problem("data.dir", folder, "null", f"data.source={source} reads no folder")
    elif folder is not None and not Path(folder).is_dir():
        yield Problem("data.dir", folder, "an existing folder of <task>/<split>.parquet files")
    elif folder is not None:
        names = [("train", data.get("train"))]
        if data.get("holdout") is None:
            names += [("validation", name) for name in ([chosen] if chosen else splits)]
        yield from _files(Path(folder) / run.task, names)
    if data.get("train") == "train_subset" and source != "folder":
        yield Problem("data.train", "train_subset", f"train: source={source} has official splits")
    unofficial = chosen == "validation_unofficial" and source != "folder"
    if unofficial or (chosen is not None and len(splits) > 1):
        yield Problem("data.validation", chosen, f"null, for {' and '.join(splits)}")


def _files(folder: Path, names: list[tuple[str, str | None]]) -> Found:
    present = sorted(path.stem for path in folder.glob("*.parquet"))
    for key, name in names:
        shards = any(stem.startswith(f"{name}-0") for stem in present)  # a clone of nyu-mll/glue
        if name is not None and name not in present and not shards:
            wrong = f"{folder} has no {name}.parquet"
            yield Problem(f"data.{key}", name, ", ".join(present), wrong)


def _holdout(run: Checked) -> Found:
    held, task, rows = run.data.get("holdout"), TASKS.get(run.task), run.rows
    if held is None or task is None:
        return
    if run.data.get("validation") is not None:
        allowed = f"null with data.holdout={held}: the validation split is not read"
        yield Problem("data.validation", run.data["validation"], allowed)
    fewest = max(2, len(task.label_names)) * len(task.validation_splits)
    if held < fewest:
        yield Problem("data.holdout", held, f"at least {fewest} rows for {task.name}")
    elif rows is not None and rows < fewest:
        allowed = f"at most {rows + held - fewest} of the {rows + held} training rows"
        yield Problem("data.holdout", held, allowed)


def _backbone(run: Checked) -> Found:
    path, source = run.backbone.get("path"), run.data.get("source")
    if run.backbone.get("profile") == "embedded" and source in ("hub", "folder"):
        wrong = "the embedded encoder can read embedded data only"
        yield Problem("data.source", source, "embedded", wrong)
    if path is None:
        return
    local = path.startswith((".", "/", "~")) or Path(path).exists()
    if local and not (Path(path) / "config.json").is_file():
        yield Problem("backbone.path", path, "a folder with config.json, tokenizer and weights")
    elif not local and not HUB_NAME.fullmatch(path):
        yield Problem("backbone.path", path, "an existing folder, or a hub name OWNER/NAME")


def _targets(run: Checked) -> Found:
    """Yield targets that the encoder's file does not name, and attention that it does not have."""
    paths, chosen = run.backbone.get("targets") or {}, run.method.get("target_modules") or []
    deberta = paths.get("query", "").endswith("query_proj")  # disentangled attention alone
    if run.backbone.get("attention") == "sdpa" and deberta:
        allowed = "eager or null: transformers has no sdpa for DeBERTa's position terms"
        yield Problem("backbone.attention", "sdpa", allowed)
    for name in dict.fromkeys(chosen) if paths else ():
        if name not in paths:
            yield Problem("backbone.targets", paths, f"a path for {name}, a target of the method")
        if chosen.count(name) > 1:
            yield Problem("method.target_modules", chosen, f"{name} once")


def _gates(run: Checked) -> Found:
    xi, xi_max = run.method.get("xi"), run.method.get("xi_max")
    if None not in (xi, xi_max) and xi_max < xi:
        yield Problem("method.xi_max", xi_max, f"at least method.xi, which is {xi}")


def _results(run: Checked) -> Found:
    folder = run.results.get("dir")
    if not folder:
        return
    place = Path(folder).absolute()
    if max(len(part.encode()) for part in place.parts) > NAME_BYTES:
        yield Problem("results.dir", folder, f"names of at most {NAME_BYTES} bytes")
        return
    nearest = next(path for path in (place, *place.parents) if os.path.lexists(path))
    if not nearest.is_dir():
        yield Problem("results.dir", folder, "a folder", f"{nearest} is a file")
    elif not os.access(nearest, os.W_OK | os.X_OK):
        yield Problem("results.dir", folder, "a folder you may write to", f"{nearest} is not one")


@dataclasses.dataclass(frozen=True)
class EncoderSizes:
    """An encoder's type, hidden size, and longest input in tokens; None where not known."""

    model_type: str | None = None
    width: int | None = None
    tokens: int | None = None


def folder_sizes(backbone: Section) -> EncoderSizes:
    """Read the sizes of an encoder in a folder or in the package; one on the hub has none here."""
    name, path = backbone.get("name"), backbone.get("path")
    folder = Path(path) if path is not None else None
    if folder is None:
        from lora2.embedded import ENCODERS, encoder_path

        folder = encoder_path(name) if name in ENCODERS else None
    if folder is None or not folder.is_dir():
        return EncoderSizes()
    config = _json(folder / "config.json")
    tokens = _json(folder / "tokenizer_config.json").get("model_max_length")
    tokens = config.get("max_position_embeddings") if tokens is None else tokens
    kind, width = config.get("model_type"), config.get("hidden_size")
    return EncoderSizes(
        kind if isinstance(kind, str) else None,
        width if isinstance(width, int) else None,
        tokens if isinstance(tokens, int) else None,
    )


def check_encoder(task: str, method: Section, length: int | None, sizes: EncoderSizes) -> Found:
    """Yield ranks above the encoder's width, and a length that it or the task cannot use."""
    for key in ("r", "k", "init_r"):
        if sizes.width and (method.get(key) or 0) > sizes.width:
            allowed = f"at most {sizes.width}, the encoder's width: no matrix has a higher rank"
            yield Problem(f"method.{key}", method[key], allowed)
    if length is None:
        return
    if sizes.tokens and length > sizes.tokens:
        allowed = f"at most the {sizes.tokens} tokens that the encoder reads"
        yield Problem("train.max_seq_length", length, allowed)
    special = 4 if sizes.model_type in ("roberta", "xlm-roberta") else 3
    if task in TASKS and len(TASKS[task].text_columns) == 2 and length < special + 2:
        allowed = f"at least {special + 2}: {special} special tokens and one token of each text"
        yield Problem("train.max_seq_length", length, allowed)


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # loading the encoder reports what is wrong with the file
    return values if isinstance(values, dict) else {}
