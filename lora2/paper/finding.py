"""One line of the audit of the paper's numbers."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Literal

import pandas as pd

Verdict = Literal["agrees", "differs", "not one run", "note"]
ARXIV = "arXiv v1"


@dataclass(frozen=True)
class Finding:
    """What the paper prints, what its own numbers give, and how that was computed.

    ``version`` names the version of the paper that prints it.
    """

    id: str
    where: str
    printed: str
    recomputed: str
    verdict: Verdict
    how: str
    version: str = ARXIV


def exact(value: object) -> Decimal:
    """A printed number without a binary rounding error: ``exact(0.31) == Decimal("0.31")``."""
    return Decimal(str(value))


def rounded(value: Decimal, places: int = 2) -> str:
    """``value`` as text, ties rounded away from zero as on paper."""
    return str(value.quantize(Decimal(1).scaleb(-places), rounding=ROUND_HALF_UP))


def agrees(printed: Decimal, value: Decimal) -> bool:
    """Whether ``value`` rounds to ``printed`` at the digits printed, ties either way."""
    exponent = printed.as_tuple().exponent
    if not isinstance(exponent, int):
        raise ValueError(f"{printed} is not a number that can be printed")
    return abs(printed - value) <= Decimal(5).scaleb(exponent - 1)


def verdict(printed: Decimal, value: Decimal) -> Verdict:
    """The verdict of ``agrees``."""
    return "agrees" if agrees(printed, value) else "differs"


def version(claim: pd.Series) -> str:
    """Return the version that makes ``claim``, and what the journal's abstract says instead."""
    journal = claim["journal"]
    return ARXIV if pd.isna(journal) else f"{ARXIV}; the journal's abstract {journal}"
