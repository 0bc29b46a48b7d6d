"""The values of a sweep's own words, from text; what is wrong is added to ``problems``."""

from __future__ import annotations

from lora2.experiment.problems import Problem


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
