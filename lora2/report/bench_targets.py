"""What a bench should reach, beside what each device's reached: results/bench/targets.md."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import pandas as pd

from lora2.report import bench_figures
from lora2.report.escape import markdown

Parts = Mapping[str, pd.DataFrame]
JUDGED = "deberta-v3-base"  # the targets are stated at its width
BESIDE = "roberta-large"
TRAIN = {"phase": "train", "row": "lora2-k8"}
WHOLE = {"row": "lora2-k8", "matrices": 72}
TWICE = {"row": "lora2-k8", "matrices": 144}


@dataclasses.dataclass(frozen=True)
class Target:
    """A column of the row of one part ``where`` these values stand."""

    text: str
    part: str
    where: Mapping[str, object]
    column: str
    cpu: float  # at most
    gpu: float
    form: str = ".3f"


def _parts_of(part: str) -> list[Target]:
    at_most = {"regulariser": 150, "allocator": 20}[part]
    return [
        Target(text, "micro", {**where, "part": part}, column, limit, limit, "d")
        for text, where, column, limit in (
            (f"Kernels of the {part}, 72 matrices", WHOLE, "kernels", at_most),
            ("The same, 144 matrices", TWICE, "kernels", at_most),
            (f"Synchronisations of the {part}", WHOLE, "syncs", 0),
        )
    ]


TARGETS = (
    Target("Step of LoRA² k=8, time to LoRA r=8", "step", TRAIN, "ratio_to_lora", 1.05, 1.05),
    Target("The same, time to AdaLoRA r=8", "step", TRAIN, "ratio_to_adalora", 0.93, 0.80),
    Target("The same, peak memory to LoRA r=8", "step", TRAIN, "memory_ratio_to_lora", 1.02, 1.02),
    *_parts_of("regulariser"),
    *_parts_of("allocator"),
    Target("Merged inference, kernels more than without an adapter", "step",
           {"phase": "inference", "row": "merged"}, "more_kernels", 0, 0, "d"),
    Target("Unmerged inference, time to no adapter", "step",
           {"phase": "inference", "row": "unmerged"}, "ratio_to_base", 1.03, 1.03),
)  # fmt: skip


def render(benches: Sequence[Parts]) -> str:
    """Return the page: a row for each target, by name two columns for each device.

    The first is judged, the second shows what the other encoder took.
    """
    named = sorted(((_device(parts), parts) for parts in benches), key=lambda one: one[0])
    lines = [["Target", "At most"]]
    for name, _ in named:
        lines[0] += [markdown(name), f"the same, {BESIDE}, not judged"]
    for target in TARGETS:
        limits = dict.fromkeys(format(limit, "g") for limit in (target.cpu, target.gpu))
        lines.append([target.text, " (GPU ".join(limits) + ")" * (len(limits) - 1)])
        for name, parts in named:
            lines[-1] += [_judged(target, parts, _is_cpu(name)), _beside(target, parts)]
    texts = [f"| {' | '.join(line)} |" for line in lines]
    about = (
        f"Judged on {JUDGED}, at whose width the targets are stated. Made by `make bench` from the "
        "CSVs beside it."
    )
    if all(_is_cpu(name) for name, _ in named):
        about += " **Not measured on a GPU: none was at hand.**"
    sizes = [f"- {markdown(name)}: {text}." for name, parts in named if (text := _sizes(parts))]
    head = ["# What should be reached, and what was", "", about, ""]
    head += [*sizes, ""] if sizes else []
    return "\n".join([*head, texts[0], "|" + "---|" * len(lines[0]), *texts[1:], ""])


def _judged(target: Target, parts: Parts, on_cpu: bool) -> str:
    value = value_of(target, parts, JUDGED)
    if math.isnan(value):
        return "not measured"
    at_most = target.cpu if on_cpu else target.gpu
    return f"{_shown(target, value)} (missed)" if value > at_most else _shown(target, value)


def _beside(target: Target, parts: Parts) -> str:
    """The other encoder's value; empty where there is none, or the part has no encoder."""
    value = value_of(target, parts, BESIDE) if target.part == "step" else math.nan
    return "" if math.isnan(value) else _shown(target, value)


def _shown(target: Target, value: float) -> str:
    return format(int(value) if target.form == "d" else value, target.form)


def _sizes(parts: Parts) -> str:
    """What the steps of both encoders were taken on."""
    if "step" not in parts:
        return ""
    frame = parts["step"].drop_duplicates("encoder").set_index("encoder")
    own = [name for name in (JUDGED, BESIDE) if name in frame.index]
    return "; ".join(f"{name} {bench_figures.size(frame.loc[name])}" for name in own)


def value_of(target: Target, parts: Parts, encoder: str = JUDGED) -> float:
    """Return what a bench reached with ``encoder``; NaN where it has no such row.

    Parts by themselves have no encoder, only matrices of the judged one's width.
    """
    if target.part not in parts:
        return math.nan
    frame = parts[target.part]
    if "encoder" in frame:
        frame = frame.loc[frame["encoder"] == encoder]
    if target.column == "more_kernels":
        plain = frame.loc[frame["row"] == "base", "kernels"].max()
        frame = frame.assign(more_kernels=frame["kernels"] - plain)
    if not {*target.where, target.column} <= set(frame.columns):  # an older bench's
        return math.nan
    for column, value in target.where.items():
        frame = frame.loc[frame[column] == value]
    return float(frame[target.column].max())


def _device(parts: Parts) -> str:
    return str(next(iter(parts.values()))["device"].iloc[0])


def _is_cpu(device: str) -> bool:
    return device.startswith("cpu")
