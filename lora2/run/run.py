"""One run: configuration -> data -> encoder -> method -> Trainer -> one run folder."""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Mapping
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
from lora2.records import run_folder, store
from lora2.records.files import explain_full_disk, is_disk_full
from lora2.run import device
from lora2.run.methods import check_model, peft_config, prepare
from lora2.run.model import count_trained, load_start, set_labels
from lora2.run.recorder import Diverged, Recorder
from lora2.run.trainer import build_trainer, tokenize_once

logger = logging.getLogger(__name__)
SUBSET_SEED = 0  # data.train_rows and data.holdout draw the same rows whatever a run's seed


def run(requested: RunConfig, *, progress: bool = True) -> Path:
    """Do one run and return its folder; a finished run is not repeated.

    An interrupted run resumes from its newest whole checkpoint. Whatever goes wrong after the
    configuration was accepted is recorded in a run folder with status failed or diverged, and
    raised again; what the encoder or PEFT refuses before training leaves no folder.
    """
    if isinstance(requested.method, Peft):
        peft_config(requested, None)  # only PEFT can check its arguments: before loading anything
    folder, work = run_folder.run_dir(requested), run_folder.work_dir(requested)
    if run_folder.status_of(requested) == "finished":
        logger.info("%s is finished already", folder)
        return folder
    device.check_device(requested)
    device.code_version()  # before a commit made during the training
    with explain_full_disk(Path(requested.results.dir)):
        try:
            device.within_memory(requested, partial(_train_and_record, requested, progress))
        except ConfigError:
            raise
        except Exception as error:
            diverged = isinstance(error, Diverged)
            if not is_disk_full(error):  # such a run resumes when there is space again
                record_failure(requested, "diverged" if diverged else "failed", error)
            if device.is_main_process():
                kept = None if diverged else run_folder.newest_checkpoint(work)
                run_folder.keep_checkpoint(work, kept)
                if kept is not None:
                    logger.warning("the next try resumes from %s: remove it to start again", kept)
            raise
        if device.is_main_process():
            run_folder.remove_checkpoints(work)
    return folder


def _train_and_record(requested: RunConfig, progress: bool, config: RunConfig, note: str) -> None:
    """Train and write the folder of the run ``requested``.

    ``config`` differs from it where memory is short: in the sizes of a batch's parts. ``note`` then
    says so on the row.
    """
    work = run_folder.work_dir(requested)
    if device.is_main_process():
        run_folder.keep_checkpoint(work, run_folder.newest_checkpoint(work))
    device.forget_peak_memory()
    device.use_matmul_precision(config)

    data = load_data(config)
    steps = total_steps(vars(config.train), len(data.train))
    assert steps is not None
    tokenizer, base = load_start(config)
    check_model(base, config, tokenizer.model_max_length)
    _, encoder = count_trained(base, config.backbone)
    model, driver = prepare(base, config, steps)
    head, adapter = count_trained(model, config.backbone)
    length, folder = config.train.max_seq_length, work.parent / "tokens"
    train_set, *eval_sets = [
        tokenize_once(frame, data.task, tokenizer, length, folder, f"{data.fingerprint} {split}")
        for split, frame in {"train": data.train, **data.validation}.items()
    ]

    recorder = Recorder(data.task, {split: len(f) for split, f in data.validation.items()})
    eval_set = concatenate_datasets(eval_sets)
    trainer = build_trainer(
        model, tokenizer, train_set, eval_set, config, steps, recorder, driver, work, progress
    )
    checkpoint = run_folder.newest_checkpoint(work)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))

    if trainer.is_world_process_zero():
        ranks = driver.kept_ranks() if hasattr(driver, "kept_ranks") else {}
        kept = driver.kept_parameters() if hasattr(driver, "kept_parameters") else adapter
        counts = {"adapter": adapter, "kept": kept, "head": head, "encoder": encoder}
        row = {
            **_identity(requested, data, base.marks), **_scores(recorder),
            **_cost(config, trainer, recorder, counts), **device.provenance(),
            "notes": note, "status": "finished", "error": "",
        }  # fmt: skip
        write = partial(_write, requested, row, model, data, recorder, ranks)
        run_folder.publish(run_folder.run_dir(requested), write)


def load_data(config: RunConfig) -> GlueData:
    """Load and check the rows that a run trains on and is scored on."""
    return load_task(config.task, **as_tree(config)["data"], seed=SUBSET_SEED)


def _write(
    config: RunConfig, row: dict[str, Any], model: nn.Module, data: GlueData, recorder: Recorder,
    kept: Mapping[str, list[bool]], folder: Path,
) -> None:  # fmt: skip
    """Fill the folder of a finished run; what was trained is saved as safetensors."""
    pd.DataFrame(recorder.history).to_csv(folder / store.HISTORY, index=False)
    splits = [
        pd.DataFrame({"split": split, "idx": frame["idx"], "label": frame["label"]})
        for split, frame in data.validation.items()
    ]
    predictions = pd.concat(splits, ignore_index=True)
    predictions["best"], predictions["last"] = recorder.best, recorder.last  # (n,) each
    predictions.to_parquet(folder / "predictions.parquet", index=False)
    store.write_ranks(folder, kept, config.backbone.targets)
    adapter = folder / "adapter"
    set_labels(model.config, data.task, data.task.problem_type)
    model.config.save_pretrained(str(adapter))  # it names the task's labels
    if hasattr(model, "peft_config"):
        model.save_pretrained(str(adapter))
    else:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        save_file(trained, str(adapter / "trainable.safetensors"))
    store.write_run(folder, config, row)


def record_failure(config: RunConfig, status: str, error: Exception) -> None:
    """Write the folder of a run that ended as ``status`` (failed or diverged) by ``error``."""

    def write(folder: Path) -> None:
        text = f"{type(error).__name__}: {error}"
        row = _identity(config, None) | {"status": status, "error": text} | device.provenance()
        (folder / "traceback.txt").write_text(traceback.format_exc())
        store.write_run(folder, config, row)

    if device.is_main_process():
        run_folder.publish(run_folder.run_dir(config), write)


def _identity(config: RunConfig, data: GlueData | None, marks: Any = ()) -> dict[str, Any]:
    marks = [*(data.marks if data is not None else ()), *marks]
    if config.backbone.random_init:
        marks.append("encoder with random weights")
    if config.task in (config.backbone.overlap or ()):
        marks.append("the encoder was trained on this task's data or on data like it")
    train = config.train
    return {
        "run": run_name(config), "schema": store.SCHEMA, "profile": config.backbone.profile,
        "protocol": config.protocol, "ranks": config.ranks, "backbone": config.backbone.name,
        "task": config.task, "method": config.method.name, "seed": config.seed,
        "config_hash": config_hash(config), "batch_size": train.batch_size,
        "precision": train.precision, "tf32": bool(train.tf32),
        "data_fingerprint": data.fingerprint if data is not None else "",
        "data_revision": (data.revision or "") if data is not None else "",
        "data_marks": "; ".join(marks),
    }  # fmt: skip


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
        "peak_memory_mb": device.peak_memory_mb(),
        "processes": trainer.args.world_size,
        "micro_batch_size": trainer.args.per_device_train_batch_size,
        "torch_threads": torch.get_num_threads(),
    }
