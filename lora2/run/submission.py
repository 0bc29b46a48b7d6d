"""Write predictions on GLUE's test splits, in the files and the zip of the GLUE server."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from lora2.config.schema import RunConfig, Train, run_name
from lora2.glue.data import load_test, tokenize
from lora2.glue.metrics import decide
from lora2.glue.tasks import TASKS, TEST_SPLITS, Task
from lora2.records.files import replacing
from lora2.records.run_folder import run_dir
from lora2.records.store import write_atomically
from lora2.run.device import autocast
from lora2.run.model import load_run
from lora2.run.trainer import collator, lengths

NAMED = ("mnli", "qnli", "rte")  # the server takes their labels as names, others' as numbers
WNLI_ROWS, WNLI_MAJORITY = 146, 0  # not one of the eight tasks; 0 is "not_entailment"
HEADER = "index\tprediction"


def write_predictions(config: RunConfig) -> list[Path]:
    """Write the files of a finished run's task, by its model of the last step; return their paths.
    Raises ValueError: the run is not finished or its folder is damaged, or the data not available.
    """
    task = TASKS[config.task]
    frames = load_test(config.task, config.data.source, config.data.dir)
    tokenizer, model = load_run(run_dir(config))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    folder, paths = Path(config.results.dir) / "predictions" / run_name(config), list[Path]()
    for split, frame in frames.items():
        if sorted(frame["idx"]) != list(range(len(frame))):
            raise ValueError(f"{task.name} {split}: idx does not number the rows from 0")
        rows = tokenize(frame, task, tokenizer, config.train.max_seq_length)
        answers = predict(model, tokenizer, rows.remove_columns("labels"), task, config.train)
        lines = [f"{i}\t{a}" for i, a in sorted(zip(frame["idx"], answers, strict=True))]
        paths.append(folder / TEST_SPLITS[config.task][split][0])
        write_atomically(paths[-1], "\n".join([HEADER, *lines, ""]))
    return paths


def predict(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: Dataset, task: Task, train: Train
) -> list[str]:
    """Return an answer for each of ``rows``: a label's name or number, or a similarity."""
    order = np.argsort(-lengths(rows), kind="stable")  # the first batch is the largest
    batches = DataLoader(
        rows.select(order), batch_size=train.eval_batch_size, collate_fn=collator(tokenizer, train)
    )
    device = next(model.parameters()).device
    with torch.inference_mode(), autocast(device.type, train.precision):
        outputs = [model(**batch.to(device)).logits.float().cpu().numpy() for batch in batches]
    decided = np.empty(len(rows))
    decided[order] = decide(task, np.concatenate(outputs))  # (n, num_labels) -> (n,)
    if task.is_regression:
        return [f"{value:.3f}" for value in decided.clip(0, 5)]
    return [task.label_names[int(n)] if task.name in NAMED else str(int(n)) for n in decided]


def write_zip(configs: Iterable[RunConfig], path: Path) -> Path:
    """Zip the predictions of one finished run of each task, with WNLI by its majority class."""
    runs = {config.task: config for config in configs}
    if missing := sorted(TASKS.keys() - runs.keys()):
        raise ValueError(f"a submission needs all eight tasks; missing: {', '.join(missing)}")
    wnli = [f"{i}\t{WNLI_MAJORITY}" for i in range(WNLI_ROWS)]
    texts = {"WNLI.tsv": "\n".join([HEADER, *wnli, ""])}
    for config in runs.values():
        for file in write_predictions(config):
            texts[file.name] = file.read_text(encoding="utf-8")
    with replacing(path) as out, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in sorted(texts.items()):
            archive.writestr(name, text)
    return path
