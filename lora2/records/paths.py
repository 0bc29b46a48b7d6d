"""Paths of a run's files. Imports no torch: a worker sets its threads before loading it."""

from __future__ import annotations

from pathlib import Path

from lora2.config.schema import RunConfig, run_name


def run_dir(config: RunConfig) -> Path:
    """Return the run folder, which is whole or absent."""
    return Path(config.results.dir) / "runs" / run_name(config)


def work_dir(config: RunConfig) -> Path:
    """Return where a run keeps the checkpoints it resumes from until it ends."""
    return Path(config.results.dir) / "work" / run_name(config)


def tokens_dir(config: RunConfig) -> Path:
    """Return where the tokenised splits of a profile's runs are kept."""
    return Path(config.results.dir) / "work" / "tokens"


def lock_file(config: RunConfig) -> Path:
    """Return the file that a process locks while it does the run."""
    return Path(config.results.dir) / "work" / f"{run_name(config)}.lock"


def log_file(config: RunConfig) -> Path:
    """Return where a sweep's worker writes what the run prints."""
    return Path(config.results.dir) / "logs" / f"{run_name(config)}.log"


def tracking_dir(config: RunConfig) -> Path:
    """Return where a tracker that writes files (TensorBoard) writes those of a run."""
    return Path(config.results.dir) / "tracking" / run_name(config)


def predictions_dir(config: RunConfig) -> Path:
    """Return where a run's predictions on the test split are written."""
    return Path(config.results.dir) / "predictions" / run_name(config)


def status(folder: Path) -> str | None:
    """Return finished, failed or diverged, or None if ``folder`` is not a whole run folder."""
    path = folder / "status"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def status_of(config: RunConfig) -> str | None:
    return status(run_dir(config))
