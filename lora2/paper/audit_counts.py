"""The audit of what the paper counts: parameters, sensitivity scores, ranks."""

from __future__ import annotations

from decimal import Decimal

import numpy as np

from lora2.paper import numbers as paper_tables
from lora2.paper import shapes
from lora2.paper.finding import Finding, exact, rounded, verdict, version

MILLION = Decimal(10**6)
MEBI = Decimal(2**20)
ALL = shapes.MATRICES


def parameters() -> list[Finding]:
    """Each printed parameter count that follows from a formula and the encoder's shapes."""
    base, qk, qv = shapes.DEBERTA_V3_BASE, ("query", "key"), ("query", "value")
    one, eight = shapes.lora2_parameters(1), shapes.lora2_parameters(8)
    lora = shapes.lora_parameters
    cases = [
        ("table1/lora2 k=1", "0.17M", shapes.total(base, one), "k (d_in + d_out) + 2 k r + r, r=8"),
        (
            "table1/lora2 k=8",
            "1.33M",
            shapes.total(base, eight),
            "k (d_in + d_out) + 2 k r + r, r=8",
        ),
        ("table1/lora r=1", "0.17M", shapes.total(base, lora(1)), "r (d_in + d_out)"),
        ("table1/lora r=8", "1.33M", shapes.total(base, lora(8)), "r (d_in + d_out)"),
        ("table1/bitfit", "0.1M", shapes.bias_parameters(base), "every bias of the encoder"),
        ("table4/q+k", "37.4k", shapes.total(base, one, qk), "two matrices per layer, k=1, r=8"),
        ("table4/q+v", "37.4k", shapes.total(base, one, qv), "two matrices per layer, k=1, r=8"),
        (
            "table4/q+k+v",
            "56.2k",
            shapes.total(base, one, ALL[:3]),
            "three matrices per layer, k=1, r=8",
        ),
        ("table4/all", "167.6k", shapes.total(base, one), "six matrices per layer, k=1, r=8"),
    ]
    found = []
    for name, printed, count, formula in cases:
        unit = {"M": MILLION, "k": Decimal(1000)}[printed[-1]]
        found.append(
            Finding(
                f"parameters/{name}",
                f"{name.replace('table', 'Table ').replace('/', ', ')}, #Params",
                printed,
                f"{count:,} = {rounded(count / unit)}{printed[-1]}",
                verdict(exact(printed[:-1]), count / unit),
                f"{formula}; DeBERTaV3-base, 12 layers of 768/3072",
            )
        )
    return found


def adalora_unit() -> list[Finding]:
    """AdaLoRA's counts fit only in units of 2^20 where the other rows count in 10^6."""
    found = []
    for rank, printed in ((2, "0.32"), (8, "1.27")):
        count = shapes.total(shapes.DEBERTA_V3_BASE, shapes.adalora_parameters(rank))
        found.append(
            Finding(
                f"parameters/table1/adalora r={rank}",
                f"Table 1, adalora r={rank}, #Params",
                f"{printed}M",
                f"{count:,} = {rounded(count / MILLION)} x 10^6 = {rounded(count / MEBI)} x 2^20",
                verdict(exact(printed), count / MILLION),
                "r (d_in + d_out) + r; the printed number fits 2^20, the other rows fit 10^6",
            )
        )
    return found


def roberta() -> list[Finding]:
    """Section 4.2's numbers on RoBERTa-large (24 layers of 1024/4096)."""
    claims, large = paper_tables.claims(), shapes.ROBERTA_LARGE
    ours = shapes.total(large, shapes.lora2_parameters(1))
    lora = shapes.total(large, shapes.lora_parameters(8), ("query", "value"))
    rate = 100 * (1 - exact(claims.loc["roberta-params", "value"]) / 335)
    saving = (lora - ours) / MILLION
    rows = [
        ("roberta-params", f"{ours:,}", ours / MILLION, "LoRA2 k=1, r=8, six matrices per layer"),
        ("roberta-compression", rounded(rate), rate, "100 (1 - 0.4 / 335)"),
        (
            "roberta-saving",
            rounded(saving),
            saving,
            f"LoRA r=8 on query and value, {lora:,}, minus LoRA2 k=1, {ours:,}",
        ),
    ]
    return [
        Finding(
            f"parameters/{name}",
            claims.loc[name, "where"],
            f"{claims.loc[name, 'quote']}: {claims.loc[name, 'value']}",
            shown,
            verdict(exact(claims.loc[name, "value"]), Decimal(value)),
            how,
        )
        for name, shown, value, how in rows
    ]


def share() -> list[Finding]:
    """The abstract's 0.72% of full fine-tuning."""
    claim = paper_tables.claims().loc["share"]
    value = 100 * exact("1.33") / 184
    return [
        Finding(
            "parameters/share",
            claim["where"],
            f"{claim['quote']}: {claim['value']}",
            rounded(value, 3),
            verdict(exact(claim["value"]), value),
            "100 x 1.33M / 184M, both as printed in Table 1",
            version(claim),
        )
    ]


def eightfold() -> list[Finding]:
    """The abstract's baseline with 8 times the parameters of LoRA2 with k=1."""
    claim, base = paper_tables.claims().loc["eightfold"], shapes.DEBERTA_V3_BASE
    ours = shapes.total(base, shapes.lora2_parameters(1))
    theirs = shapes.total(base, shapes.lora_parameters(8))
    value = Decimal(theirs) / ours
    return [
        Finding(
            "parameters/eightfold",
            claim["where"],
            f"{claim['quote']}: {claim['value']:g}",
            rounded(value),
            verdict(exact(f"{claim['value']:g}"), value),
            f"LoRA r=8, {theirs:,}, divided by LoRA2 k=1, {ours:,}; for the scores of the two see "
            f"text/k1-over-r8",
            version(claim),
        )
    ]


def scores() -> list[Finding]:
    """Sensitivity scores saved by Eq. 9, for one square matrix and for the whole encoder."""
    claim, base = paper_tables.claims().loc["scores"], shapes.DEBERTA_V3_BASE
    kept, every = shapes.lora2_scores_kept(1), shapes.lora2_parameters(1)
    cases = {
        "768x768 k=1": (kept(768, 768), every(768, 768)),
        "768x3072 k=1": (kept(768, 3072), every(768, 3072)),
        "encoder k=1": (shapes.total(base, kept), shapes.total(base, every)),
        "encoder k=8": (
            shapes.total(base, shapes.lora2_scores_kept(8)),
            shapes.total(base, shapes.lora2_parameters(8)),
        ),
    }
    found = []
    for name, (some, whole) in cases.items():
        saved = 100 * (1 - Decimal(some) / whole)
        found.append(
            Finding(
                f"scores/{name}",
                claim["where"],
                f"{claim['quote']}: {claim['value']}",
                f"{rounded(saved)}: {some:,} of {whole:,} are left",
                verdict(exact(claim["value"]), saved) if name == "768x768 k=1" else "note",
                f"{name}, r=8; Eq. 9 reads the singular values, v and U: r + 2 k r",
                version(claim),
            )
        )
    return found


def readings() -> list[Finding]:
    """Which two factors Section 3.2 can mean to drop: it does not name them consistently."""
    claim = paper_tables.claims().loc["scores"]
    size = {"u": 768, "v": 8, "U": 8, "V": 768}  # k=1, r=8, d_in = d_out = 768
    whole, found = 8 + sum(size.values()), []
    for dropped in ("uU", "vU", "uV"):
        saved = Decimal(100) * sum(size[name] for name in dropped) / whole
        found.append(
            Finding(
                f"reading/{dropped[0]} and {dropped[1]}",
                "Section 3.2, Eq. 6-9",
                f"{claim['value']} by dropping two factors",
                f"{rounded(saved)} if {dropped[0]} and {dropped[1]} are dropped",
                verdict(exact(claim["value"]), saved),
                "scores of the two factors over all of one 768x768 matrix, k=1, r=8",
            )
        )
    return found


def update_rank(k: int, r: int = 8, width: int = 64) -> int:
    """Rank of u v diag(L) U V for random factors, in double precision."""
    rng = np.random.default_rng(0)
    u, v = rng.standard_normal((width, k)), rng.standard_normal((k, r))
    U, V = rng.standard_normal((r, k)), rng.standard_normal((k, width))
    update = u @ (v * rng.standard_normal(r)) @ U @ V  # (width, k) -> (width, width)
    return int(np.linalg.matrix_rank(update))


def ranks() -> list[Finding]:
    """The rank of LoRA2's update (Eq. 4), whatever r is."""
    return [
        Finding(
            f"rank/k={k}",
            "Section 3.1, Eq. 4",
            f"multi-scale update with k={k}, r=8",
            f"rank {update_rank(k)}",
            "note",
            f"numerical rank of u v diag(L) U V, random factors, width 64; at most min(k, r) = "
            f"{min(k, 8)}" + (", the same class of updates as LoRA with r=1" if k == 1 else ""),
        )
        for k in (1, 8)
    ]
