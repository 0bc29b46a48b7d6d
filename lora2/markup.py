"""Text that stays text inside a Markdown table or a LaTeX document."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_MARKDOWN = re.compile(r"([\\`*_{}\[\]|~$])")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
}


def one_line(text: object) -> str:
    """``text`` on one line, without characters that steer a terminal or turn the line around."""
    flat = " ".join(str(text).split())
    return "".join(one for one in flat if unicodedata.category(one) not in ("Cc", "Cf", "Cs"))


def markdown(text: object) -> str:
    """``text`` on one line with every character that Markdown would act on escaped."""
    flat = one_line(text)
    flat = "".join(_HTML.get(character, character) for character in flat)
    return _MARKDOWN.sub(r"\\\1", flat)


def grid(lines: Sequence[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table from unescaped cells, the head first."""
    rows = ["| " + " | ".join(markdown(text) for text in line) + " |" for line in lines]
    return [rows[0], "|" + "---|" * len(lines[0]), *rows[1:]]


def tex(text: object) -> str:
    """``text`` on one line with LaTeX's special characters escaped."""
    flat = one_line(text)
    return "".join(_TEX.get(character, character) for character in flat)
