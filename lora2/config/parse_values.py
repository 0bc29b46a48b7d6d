"""The values of typed words, from text."""

from __future__ import annotations

import re
from typing import Any

from lora2.config import safe_yaml
from lora2.config.problems import Problem

INTEGER = re.compile(r"[+-]?(0|[1-9](_?\d)*)", re.ASCII)
FLOAT = re.compile(
    r"(?=.*[.a-z])[+-]?((\d(_?\d)*\.?(\d(_?\d)*)?|\.\d(_?\d)*)(e[+-]?\d+)?|inf|nan)",
    re.ASCII | re.IGNORECASE,
)
QUOTED = re.compile(r"""(['"])((?:(?!\1)[^\\]|\\.)*)\1""", re.DOTALL)
KEY = re.compile(r"""('[^']*'|"[^"]*")|([{,]\s*[\w.-]+):""")
BARE = re.compile(r"[\w./\\%+?*@:| -]*")


def word_value(text: str) -> Any:
    """Return the value of ``key=text``: a list or dict in brackets, text in quotes, or one scalar.

    Raises:
        ValueError: brackets or quotes are left open, or a sign stands outside quotes.
    """
    text = text.strip()
    if text.startswith(("[", "{")):
        # {r:8} for YAML's {r: 8}; text in quotes is left alone
        spaced = KEY.sub(lambda match: match[1] or f"{match[2]}: ", text)
        return safe_yaml.load(spaced, _WordLoader)
    if match := QUOTED.fullmatch(text):
        return re.sub(r"\\([\\'\"])", r"\1", match[2])
    if not BARE.fullmatch(text):
        raise ValueError(text)
    return _scalar(text)


def _scalar(text: str) -> Any:
    constants = {"null": None, "true": True, "false": False}
    if text.lower() in constants:
        return constants[text.lower()]
    if INTEGER.fullmatch(text):
        return int(text)
    return float(text) if FLOAT.fullmatch(text) else text


class _WordLoader(safe_yaml.Loader):
    """Reads scalars inside brackets as outside: YAML's own take 1e-3 for text and 1:30 for 90."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


_WordLoader.add_constructor(
    "tag:yaml.org,2002:str", lambda _, node: node.value if node.style else _scalar(node.value)
)


def comma_list(text: str | None) -> list[str] | None:
    """Return the parts of ``a,b`` or ``[a,b]``; none of an empty text, None where no text is."""
    if text is None:
        return None
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    parts = [part.strip() for part in text.split(",")]
    return [] if parts == [""] else parts


def seed_list(text: str | None, problems: list[Problem]) -> list[int] | None:
    """Return the seeds of ``seeds=``, each once; None for null."""
    if text is None or text == "null":
        return None
    parts = comma_list(text) or []
    good = [int(part) for part in parts if is_number(part) and int(part) < 2**32]
    if len(good) != len(parts) or not good:
        problems.append(Problem("seeds", text, "whole numbers from 0 with commas, such as 1,2,3"))
    return list(dict.fromkeys(good))


def positive(text: str | None, problems: list[Problem]) -> int | None:
    """Return the number of ``workers=``."""
    if text is None:
        return None
    if not is_number(text) or int(text) < 1:
        problems.append(Problem("workers", text, "a whole number of at least 1"))
        return None
    return int(text)


def is_number(text: str) -> bool:
    """Tell whether a text is a whole number of fewer than 20 digits."""
    return text.isascii() and text.isdecimal() and len(text) < 20


def flag(key: str, text: str, problems: list[Problem]) -> bool:
    """Return the truth of ``key=true`` or ``key=false``."""
    if text not in ("true", "false"):
        problems.append(Problem(key, text, "true or false"))
    return text == "true"
