"""An offline GLUE from a small grammar, and two tiny encoders pretrained on its text."""

from __future__ import annotations

from pathlib import Path

from lora2.embedded.grammar import make_split

__all__ = ["ENCODERS", "encoder_path", "make_split"]

ENCODERS = ("embedded", "embedded-roberta")


def encoder_path(name: str) -> Path:
    """Return the folder of encoder ``name``, for ``from_pretrained(folder)``.

    ``embedded`` is a DeBERTa-v2 with DeBERTaV3's choices, ``embedded-roberta`` a RoBERTa; both
    have 2 layers of width 64. tools/pretrain_embedded.py trained them.
    """
    if name not in ENCODERS:
        raise ValueError(f"no embedded encoder {name!r}; choose from {', '.join(ENCODERS)}")
    return Path(__file__).parent / "weights" / name
