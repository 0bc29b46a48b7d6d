"""Recount the paper's parameters, sensitivity scores and ranks from the encoders' shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import NamedTuple

import numpy as np

from lora2.config.parse import SHAPES
from lora2.paper.findings import Finding, agrees, finding, row_name
from lora2.paper.numbers import exact, rounded, table, texts

MATRICES = ("query", "key", "value", "attention_output", "intermediate", "output")
Count = Callable[[int, int], int]  # (d_in, d_out) of a matrix -> a count


class Encoder(NamedTuple):
    """A transformer encoder: its number of layers, hidden width and feed-forward width."""

    layers: int
    hidden: int
    feed_forward: int

    def total(self, count: Count, matrices: Iterable[str] = MATRICES) -> int:
        """Sum ``count`` over the chosen matrices of every layer."""
        wide = {"intermediate": (self.hidden, self.feed_forward),
                "output": (self.feed_forward, self.hidden)}  # fmt: skip
        shapes = [wide.get(matrix, (self.hidden, self.hidden)) for matrix in matrices]
        return self.layers * sum(count(*shape) for shape in shapes)

    def biases(self) -> int:
        """Count a DeBERTa-v2's biases, layer norms included, without pooler and classifier.

        A layer has seven of the hidden width (two of layer norms) and one of the feed-forward
        width; the embeddings and the relative positions have a layer norm each.
        """
        return self.layers * (7 * self.hidden + self.feed_forward) + 2 * self.hidden


def encoder(name: str) -> Encoder:
    """Return a published encoder's sizes, from its config.json."""
    shape = SHAPES[name]
    return Encoder(shape["num_hidden_layers"], shape["hidden_size"], shape["intermediate_size"])


def lora2_parameters(k: int) -> Count:
    """Count u, V, then v and U, then the r = 8 singular values (Eq. 4)."""
    return lambda d_in, d_out: k * (d_in + d_out) + 2 * k * 8 + 8


def lora_parameters(r: int, singular_values: int = 0) -> Count:
    """Count A and B, and AdaLoRA's singular values (Eq. 3)."""
    return lambda d_in, d_out: r * (d_in + d_out) + singular_values


def parameters() -> Iterator[Finding]:
    """Compare each printed parameter count that follows from a formula and the encoder's shapes."""
    base = encoder("deberta-v3-base")
    modules = {"q+k": MATRICES[:2], "q+v": MATRICES[:3:2], "q+k+v": MATRICES[:3], "all": MATRICES}
    counts = {
        **{f"table1/lora2 k={k}": base.total(lora2_parameters(k)) for k in (1, 8)},
        **{f"table1/lora r={r}": base.total(lora_parameters(r)) for r in (1, 8)},
        "table1/bitfit": base.biases(),
        **{f"table4/{name}": base.total(lora2_parameters(1), m) for name, m in modules.items()},
        **{f"table1/adalora r={r}": base.total(lora_parameters(r, r)) for r in (2, 8)},
    }
    sizes = {f"table{n}/{row_name(line)}": line["params" if n == 1 else "params_printed"]
             for n in (1, 4) for line in table(n)}  # fmt: skip
    for name, count in counts.items():
        printed, unit = sizes[name], sizes[name][-1]
        value = count / Decimal({"M": 10**6, "k": 10**3}[unit])
        shown = f"{count:,} = {rounded(value)}{unit}"
        if "adalora" in name:
            mebi = rounded(count / Decimal(2**20))
            shown = f"{count:,} = {rounded(value)} x 10^6 = {mebi} x 2^20"
        right = agrees(exact(printed[:-1]), value)
        yield finding(f"parameters/{name}", shown, right, printed=printed)


def claimed_sizes() -> Iterator[Finding]:
    """Check Section 4.2's numbers for RoBERTa-large, and the sizes in the abstract."""
    base, large = encoder("deberta-v3-base"), encoder("roberta-large")
    ours, eight = large.total(lora2_parameters(1)), lora_parameters(8)
    yield finding("parameters/roberta-params", f"{ours:,}", ours / Decimal(10**6))
    rate = 100 * (1 - exact("0.4") / 335)
    yield finding("parameters/roberta-compression", rounded(rate), rate)
    lora = large.total(eight, ("query", "value"))
    saved = (lora - ours) / Decimal(10**6)
    yield finding("parameters/roberta-saving", rounded(saved), saved, lora=lora, ours=ours)
    share = 100 * exact("1.33") / 184
    yield finding("parameters/share", rounded(share, 3), share)
    ours, lora = base.total(lora2_parameters(1)), base.total(eight)
    times = Decimal(lora) / ours
    yield finding("parameters/eightfold", rounded(times), times, lora=lora, ours=ours)


def scores() -> Iterator[Finding]:
    """Count the sensitivity scores saved by Eq. 9, for one matrix and for the whole encoder."""

    def kept(k: int) -> Count:  # the singular values, v and U
        return lambda d_in, d_out: 8 + 2 * k * 8

    base = encoder("deberta-v3-base")
    cases = {f"768x{width} k=1": [count(768, width) for count in (kept(1), lora2_parameters(1))]
             for width in (768, 3072)}  # fmt: skip
    for k in (1, 8):
        cases[f"encoder k={k}"] = [base.total(count) for count in (kept(k), lora2_parameters(k))]
    for name, (left, whole) in cases.items():
        saved = 100 * (1 - Decimal(left) / whole)
        shown = f"{rounded(saved)}: {left:,} of {whole:,} are left"
        yield finding(f"scores/{name}", shown, saved if name == "768x768 k=1" else None, size=name)


def readings() -> Iterator[Finding]:
    """Try the pairs of factors that Section 3.2, which is inconsistent, may mean to drop."""
    size = {"u": 768, "v": 8, "U": 8, "V": 768}  # k=1, r=8, d_in = d_out = 768
    value = texts()["scores"]["value"]
    for first, second in ("uU", "vU", "uV"):
        saved = Decimal(100) * (size[first] + size[second]) / (8 + sum(size.values()))
        shown = f"{rounded(saved)} if {first} and {second} are dropped"
        yield finding(f"reading/{first} and {second}", shown, agrees(exact(value), saved))


def update_rank(k: int, r: int = 8) -> int:
    """Return the rank of u v diag(L) U V for random factors, in double precision."""
    rng, width = np.random.default_rng(0), 64
    u, v = rng.standard_normal((width, k)), rng.standard_normal((k, r))
    U, V = rng.standard_normal((r, k)), rng.standard_normal((k, width))
    update = u @ (v * rng.standard_normal(r)) @ U @ V  # (width, k) -> (width, width)
    return int(np.linalg.matrix_rank(update))


def ranks() -> Iterator[Finding]:
    """Compute the rank of LoRA2's update (Eq. 4), whatever r is."""
    for k in (1, 8):
        yield finding(f"rank/k={k}", f"rank {update_rank(k)}")
