"""Can what runs need from the hub be had? Asked once, before torch is imported and runs begin."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from lora2.config.schema import RunConfig
from lora2.hub import not_at_hand

WAYS_OUT = """Three ways out:
  connect to a network, or download once where there is one:
    {downloads}
  folders: {folders}
  backbone=embedded (a table: profile=embedded): a tiny encoder and made sentences, no download"""
Need = tuple[str, str]  # repository, model or dataset


class Unreachable(RuntimeError):
    """An encoder or the data is neither on this machine nor to be had; the ways out are named."""


def check_reach(configs: Iterable[RunConfig]) -> None:
    """Ask the hub for every repository that ``configs`` need and no cache holds, all at once.

    Takes as long as one question, so at most ``lora2.hub.PROBE_SECONDS``.

    Raises:
        Unreachable: naming each repository, why it cannot be had, and the three ways out.
    """
    needs = list(dict.fromkeys(need for config in configs for need in needs_of(config)))
    if not needs:
        return
    with ThreadPoolExecutor(len(needs)) as pool:
        reasons = list(pool.map(lambda need: not_at_hand(*need), needs))
    lacking = {need: why for need, why in zip(needs, reasons, strict=True) if why is not None}
    if lacking:
        raise Unreachable(_message(lacking))


def needs_of(config: RunConfig) -> list[Need]:
    """Return what a run takes from the hub."""
    found: list[Need] = []
    if config.backbone.path is not None:
        found.append((config.backbone.path, "model"))
    if config.data.source == "hub":
        from lora2.glue.hub import REPOSITORY  # with pyarrow, which a refused word need not load

        found.append((REPOSITORY, "dataset"))
    return found


def _message(lacking: dict[Need, str]) -> str:
    names = {"model": "the encoder", "dataset": "the data"}
    lines = [
        f"{names[kind]} {path} cannot be had: {' '.join(why.split())}"
        for (path, kind), why in lacking.items()
    ]
    downloads = [
        f"hf download {path}{' --repo-type dataset' * (kind == 'dataset')} --local-dir DIR"
        for path, kind in lacking
    ]
    keys = {"model": "backbone.path=DIR", "dataset": "data.dir=DIR (DIR/<task>/<split>.parquet)"}
    folders = " ".join(dict.fromkeys(keys[kind] for _, kind in lacking))
    ways = WAYS_OUT.format(downloads="\n    ".join(downloads), folders=folders)
    return "\n".join([*lines, ways])
