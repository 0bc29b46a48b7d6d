"""One run: configuration -> data -> encoder -> method -> Trainer -> one run folder."""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import concatenate_datasets
from safetensors.torch import save_file
from torch import nn
from transformers import Trainer

from lora2.config.load import total_steps
from lora2.config.problems import ConfigError
from lora2.config.schema import Peft, RunConfig, as_tree, config_hash, run_name
from lora2.glue.data import GlueData, load_task
from lora2.glue.tasks import Task
from lora2.records import store
from lora2.records.files import explain_full_disk, is_disk_full
from lora2.records.run_folder import (
    explain_bad_checkpoint,
    keep_checkpoint,
    newest_checkpoint,
    publish,
    remove_checkpoints,
    run_dir,
    status_of,
    tokens_dir,
    work_dir,
)
from lora2.run.device import (
    check_device,
    forget_peak_memory,
    is_main_process,
    peak_memory_mb,
    provenance,
    use_matmul_precision,
    within_memory,
)
from lora2.run.methods import check_model, peft_config, prepare
from lora2.run.model import count_trained, load_start, set_labels
from lora2.run.recorder import Diverged, Recorder
from lora2.run.trainer import build_trainer, tokenize_once

logger = logging.getLogger(__name__)
SUBSET_SEED = 0  # data.train_rows and data.holdout draw the same rows whatever a run's seed


def run(requested: RunConfig, *, progress: bool = True) -> Path:
    """Do one run and return its folder; a finished run is not repeated.

    An interrupted run resumes from its newest whole checkpoint. Whatever goes wrong after the
    configuration was accepted is recorded in a run folder with status failed or diverged; what the
    encoder or PEFT refuses before training leaves no folder.

    Raises:
        Exception: the error of a failed run, after it was recorded.
    """
    if isinstance(requested.method, Peft):
        peft_config(requested, None)  # only PEFT can check its arguments: before loading anything
    folder, work = run_dir(requested), work_dir(requested)
    if status_of(requested) == "finished":
        logger.info("%s is finished already", folder)
        return folder
    check_device(requested)
    with explain_full_disk(Path(requested.results.dir)):
        try:
            within_memory(requested, partial(_train_and_record, requested, progress))
        except ConfigError:
            raise
        except Exception as error:
            diverged = isinstance(error, Diverged)
            if not is_disk_full(error):  # such a run resumes when there is space again
                record_failure(requested, "diverged" if diverged else "failed", error)
            if is_main_process():
                keep_checkpoint(work, None if diverged else newest_checkpoint(work))
            raise
        if is_main_process():
            remove_checkpoints(work)
    return folder


def _train_and_record(
    requested: RunConfig, progress: bool, effective: RunConfig, note: str
) -> None:
    """Train and write the folder of the run ``requested``.

    ``effective`` differs from it where memory is short: in the sizes of a batch's parts. ``note``
    then says so on the row.
    """
    config, work = effective, work_dir(requested)
    if is_main_process():
        keep_checkpoint(work, newest_checkpoint(work))
    forget_peak_memory()
    use_matmul_precision(config)

    data = load_data(config)
    steps = total_steps(vars(config.train), len(data.train))
    assert steps is not None
    tokenizer, base = load_start(config)
    check_model(base, config, tokenizer.model_max_length)
    _, encoder = count_trained(base, config.backbone)
    model, driver = prepare(base, config, steps)
    head, adapter = count_trained(model, config.backbone)
    length, folder = config.train.max_seq_length, tokens_dir(config)
    train_set, *eval_sets = [
        tokenize_once(frame, data.task, tokenizer, length, folder, f"{data.fingerprint} {split}")
        for split, frame in {"train": data.train, **data.validation}.items()
    ]

    recorder = Recorder(data.task, {split: len(f) for split, f in data.validation.items()})
    eval_set = concatenate_datasets(eval_sets)
    trainer = build_trainer(
        model, tokenizer, train_set, eval_set, config, steps, recorder, driver, work, progress
    )
    checkpoint = newest_checkpoint(work)
    with explain_bad_checkpoint(checkpoint):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))

    if trainer.is_world_process_zero():
        ranks = driver.kept_ranks() if hasattr(driver, "kept_ranks") else {}
        kept = driver.kept_parameters() if hasattr(driver, "kept_parameters") else adapter
        counts = {"adapter": adapter, "kept": kept, "head": head, "encoder": encoder}
        row = {
            **_identity(requested, data, base.marks),
            **_scores(recorder),
            **_cost(config, trainer, recorder, counts),
            **provenance(),
            "notes": note,
            "status": "finished",
            "error": "",
        }
        publish(run_dir(requested), partial(_write, requested, row, model, data, recorder, ranks))


def load_data(config: RunConfig) -> GlueData:
    """Load and check the rows that a run trains on and is scored on."""
    return load_task(config.task, **as_tree(config)["data"], seed=SUBSET_SEED)


def _write(
    config: RunConfig,
    row: dict[str, Any],
    model: nn.Module,
    data: GlueData,
    recorder: Recorder,
    kept: Mapping[str, list[bool]],
    folder: Path,
) -> None:
    """Fill the folder of a finished run."""
    pd.DataFrame(recorder.history).to_csv(folder / store.HISTORY, index=False)
    splits = [
        pd.DataFrame({"split": split, "idx": frame["idx"], "label": frame["label"]})
        for split, frame in data.validation.items()
    ]
    predictions = pd.concat(splits, ignore_index=True)
    predictions["best"], predictions["last"] = recorder.best, recorder.last  # (n,) each
    predictions.to_parquet(folder / "predictions.parquet", index=False)
    store.write_ranks(folder, kept, config.backbone.targets)
    _save_weights(folder / "adapter", model, data.task)
    store.write_run(folder, config, row)


def _save_weights(adapter: Path, model: nn.Module, task: Task) -> None:
    """Save what was trained as safetensors: a PEFT adapter, or the trainable parameters.

    Beside it goes the encoder's configuration, which names the task's labels.
    """
    set_labels(model.config, task, task.problem_type)
    model.config.save_pretrained(str(adapter))
    if hasattr(model, "peft_config"):
        model.save_pretrained(str(adapter))
        return
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    save_file(trained, str(adapter / "trainable.safetensors"))


def record_failure(config: RunConfig, status: str, error: Exception) -> None:
    """Write the folder of a run that ended as ``status`` (failed or diverged) by ``error``."""

    def write(folder: Path) -> None:
        text = f"{type(error).__name__}: {error}"
        row = {**_identity(config, None), "status": status, "error": text, **provenance()}
        (folder / "traceback.txt").write_text(traceback.format_exc())
        store.write_run(folder, config, row)

    if is_main_process():
        publish(run_dir(config), write)


def _identity(
    config: RunConfig, data: GlueData | None, marks: Sequence[str] = ()
) -> dict[str, Any]:
    marks = [*(data.marks if data is not None else ()), *marks]
    if config.backbone.random_init:
        marks.append("encoder with random weights")
    if config.task in (config.backbone.overlap or ()):
        marks.append("the encoder was trained on this task's data or on data like it")
    return {
        "run": run_name(config),
        "schema": store.SCHEMA,
        "profile": config.backbone.profile,
        "protocol": config.protocol,
        "ranks": config.ranks,
        "backbone": config.backbone.name,
        "task": config.task,
        "method": config.method.name,
        "seed": config.seed,
        "config_hash": config_hash(config),
        "batch_size": config.train.batch_size,
        "precision": config.train.precision,
        "tf32": bool(config.train.tf32),
        "data_fingerprint": data.fingerprint if data is not None else "",
        "data_revision": (data.revision or "") if data is not None else "",
        "data_marks": "; ".join(marks),
    }


def _scores(recorder: Recorder) -> dict[str, Any]:
    best, last = recorder.best_row, recorder.history[-1]
    names = recorder.task.metric_names
    return {
        "score_best": best["score"],
        "step_best": best["step"],
        "score_last": last["score"],
        "evaluations": len(recorder.history),
        **{f"best_{name}": best[name] for name in names},
        **{f"last_{name}": last[name] for name in names},
    }


def _cost(
    config: RunConfig, trainer: Trainer, recorder: Recorder, counts: dict[str, int]
) -> dict[str, Any]:
    encoder, timed = trainer.model.config, recorder.timed_steps
    return {
        "backbone_revision": getattr(encoder, "_commit_hash", None) or "",
        "attention": config.backbone.attention or encoder._attn_implementation,
        **{f"params_{part}": number for part, number in counts.items()},
        "steps": trainer.state.global_step,
        "seconds_per_step": recorder.train_seconds / timed if timed else math.nan,
        "train_seconds": recorder.train_seconds,
        "peak_memory_mb": peak_memory_mb(),
        "processes": trainer.args.world_size,
        "micro_batch_size": trainer.args.per_device_train_batch_size,
        "torch_threads": torch.get_num_threads(),
    }
