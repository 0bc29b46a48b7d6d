"""Where the shipped encoders are."""

from __future__ import annotations

from pathlib import Path

ENCODERS = ("embedded", "embedded-roberta")


def encoder_path(name: str) -> Path:
    """The folder of encoder `name`, for `AutoModel…from_pretrained(folder)` and `AutoTokenizer`.

    `embedded` is a DeBERTa-v2 with DeBERTaV3's choices, `embedded-roberta` a RoBERTa; both have
    2 layers of width 64, and `pretrain` made both. No network is used.

    Raises:
        ValueError: unknown name.
    """
    if name not in ENCODERS:
        raise ValueError(f"no embedded encoder {name!r}; choose from {', '.join(ENCODERS)}")
    return Path(__file__).parent / "weights" / name
