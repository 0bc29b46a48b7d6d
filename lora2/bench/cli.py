"""Time the methods on this device: parts, training steps, Table 2, scaling, a step's profile.

Every method steps in turn with the others in one process, on random weights of the encoder's
shape. Writes results/bench/<device>/{micro,step,table2,scaling,profile}.csv. Sizes default to the
paper's on a GPU, and to smaller encoders on a processor.

python scripts/bench.py --only step --rounds 20
python scripts/bench.py --against REVISION             # a step of this code and of that, in turn
python -m lora2.report.bench results/bench/<device>    # plots and a page of the CSVs
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence

import torch

from lora2.bench import against, glue_times, micro, profile, record, scaling, steps
from lora2.bench.lengths import Lengths, known_lengths
from lora2.bench.methods import METHODS
from lora2.bench.options import ENCODERS, SIZES, TABLE2, TABLE2_BATCH, Sizes, narrowed, parse
from lora2.bench.record import Row
from lora2.bench.shape import Shape
from lora2.bench.step import release

AGAINST = "against"  # a part of its own: a file against.csv
PROFILED_STEPS = 7  # of each method, at most: reading what was seen takes longer than the step


def main(argv: Sequence[str]) -> int:
    """Run the parts asked for; show each, and write it as soon as it is done."""
    args = parse(argv, __doc__, tuple(PARTS))
    origin = record.provenance(args.device, args.commit)
    folder = (args.out or record.RESULTS) / record.slug(str(origin["device"]))
    print(f"bench on {origin['device']}, {args.precision}", flush=True)
    for part in [AGAINST] if args.against else args.only:
        started = time.perf_counter()
        rows = {**PARTS, AGAINST: _against}[part](args, SIZES[args.device])
        release()
        print(record.table(rows, SHOWN[part]))
        print(f"{part}: {len(rows)} rows in {time.perf_counter() - started:.0f} s", flush=True)
        if narrowed(args, part) and args.out is None:
            print(f"a part or a variant of {part}: shown, not written (--out DIR writes it there)")
        else:
            record.write(folder / f"{part}.csv", rows, origin)
            print(f"wrote {folder / part}.csv", flush=True)
    return 0


def _shape(args: argparse.Namespace, sizes: Sizes, encoder: str) -> Shape:
    layers = sizes.layers if args.layers is None else args.layers or None
    batch, tokens = args.batch or sizes.batch, args.tokens or sizes.tokens
    width = args.width or None
    return Shape(encoder, layers, width, batch, tokens, args.precision, args.device)


def _micro(args: argparse.Namespace, sizes: Sizes) -> list[Row]:
    shape, rounds = _shape(args, sizes, ENCODERS[0]), args.rounds or sizes.rounds
    return micro.measure(shape, micro.DEPTHS, rounds, args.warm_up)


def _step(args: argparse.Namespace, sizes: Sizes) -> list[Row]:
    rows: list[Row] = []
    for encoder in args.encoders or ENCODERS:
        print(f"  {encoder}", flush=True)
        shape, methods = _shape(args, sizes, encoder), args.methods or list(METHODS)
        rows += steps.measure(shape, methods, args.rounds or sizes.rounds, args.warm_up)
    return rows


def _table2(args: argparse.Namespace, sizes: Sizes) -> list[Row]:
    own = dataclasses.replace(sizes, layers=sizes.table2_layers)
    shape = _shape(args, own, (args.encoders or ENCODERS)[0])
    shape = dataclasses.replace(shape, batch=args.batch or TABLE2_BATCH)
    rounds, methods = args.rounds or sizes.table2_rounds, args.methods or sizes.table2_methods
    return glue_times.measure(
        shape, methods, _lengths(args), sizes.batches, rounds, max(args.warm_up, sizes.batches)
    )


def _lengths(args: argparse.Namespace) -> dict[str, Lengths]:
    known = known_lengths()
    tasks = args.tasks or list(known)
    if args.glue is None:
        return {task: known[task] for task in tasks}
    from lora2.bench.measure_lengths import measured_lengths

    return measured_lengths(args.glue, args.tokenizer, tasks)


def _scaling(args: argparse.Namespace, sizes: Sizes) -> list[Row]:
    shape, rounds = _shape(args, sizes, ENCODERS[0]), max(1, (args.rounds or sizes.rounds) // 2)
    narrow = dataclasses.replace(shape, width=shape.width or sizes.narrow)
    rows = scaling.over_layers(narrow, args.depths, rounds, args.warm_up)
    return rows + scaling.over_ranks(shape, args.ranks, rounds, args.warm_up)


def _profile(args: argparse.Namespace, sizes: Sizes) -> list[Row]:
    shape = _shape(args, sizes, (args.encoders or ENCODERS)[0])
    return profile.measure(shape, min(PROFILED_STEPS, args.rounds or sizes.rounds), args.warm_up)


def _against(args: argparse.Namespace, sizes: Sizes) -> list[Row]:
    shape = _shape(args, sizes, (args.encoders or ENCODERS)[0])
    methods, rounds = args.methods or against.COMPARED, args.rounds or sizes.rounds
    threads = torch.get_num_threads()
    return against.measure(shape, args.against, methods, threads, rounds, args.warm_up)


PARTS: dict[str, Callable[[argparse.Namespace, Sizes], list[Row]]] = {
    "micro": _micro,
    "step": _step,
    TABLE2: _table2,
    "scaling": _scaling,
    "profile": _profile,
}
RATIOS = ("ratio_to_lora", "ratio_to_adalora")
MEMORY = ("memory_mib", "memory_ratio_to_lora")
SHOWN = {
    "micro": ("part", "row", "matrices", "seconds", *RATIOS, "kernels", "syncs"),
    "step": (
        "encoder",
        "row",
        "seconds",
        *RATIOS,
        "ratio_to_base",
        "kernels",
        "syncs",
        *MEMORY,
    ),
    TABLE2: ("task", "row", "tokens", "seconds", *RATIOS, *MEMORY),
    AGAINST: ("code", "row", "seconds", "ratio_to_then", "ratio_to_lora", "kernels", "syncs"),
    "profile": ("row", "kind", "name", "calls", "seconds", "share", "ratio_to_lora"),
    "scaling": ("axis", "value", "what", "row", "seconds", *RATIOS, "kernels", "syncs"),
}
