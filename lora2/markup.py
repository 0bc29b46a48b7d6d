"""Escape text for Markdown and LaTeX, and write it as tables."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_MARKDOWN = re.compile(r"([\\`*_{}\[\]|~$])")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%",
    "#": r"\#", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$", "−": r"$-$",
    "–": "--",
}  # fmt: skip
UPRIGHT = 9  # columns; a wider LaTeX table is rotated, or its letters would be too small to read


def one_line(text: object) -> str:
    """Return ``text`` on one line, without characters that control a terminal or its direction."""
    flat = " ".join(str(text).split())
    return "".join(char for char in flat if unicodedata.category(char) not in ("Cc", "Cf", "Cs"))


def markdown(text: object) -> str:
    """Return ``text`` on one line with every character that Markdown would act on escaped."""
    flat = "".join(_HTML.get(char, char) for char in one_line(text))
    return _MARKDOWN.sub(r"\\\1", flat)


def tex(text: object) -> str:
    """Return ``text`` on one line with LaTeX's special characters escaped."""
    return "".join(_TEX.get(char, char) for char in one_line(text))


def grid(lines: Sequence[Sequence[object]]) -> list[str]:
    """Return the lines of a Markdown table from unescaped cells, the head first."""
    rows = ["| " + " | ".join(markdown(text) for text in line) + " |" for line in lines]
    return [rows[0], "|" + "---|" * len(lines[0]), *rows[1:]]


def tex_float(about: str, lines: Sequence[Sequence[object]], notes: Sequence[str] = ()) -> str:
    """Return a LaTeX float of unescaped text, shrunk to the line: caption, head, rows, notes below.

    LaTeX writes the number itself. The document needs the packages booktabs and graphicx, and
    rotating for a table of more than nine columns, which is rotated.
    """
    head, *rows = [" & ".join(tex(text) for text in line) + r" \\" for line in lines]
    kind = "table" if len(lines[0]) <= UPRIGHT else "sidewaystable"
    below = rf"\par\smallskip{{\footnotesize\raggedright {tex(' '.join(notes))}\par}}"
    return "\n".join([
        rf"\begin{{{kind}}}", r"\centering", rf"\caption{{{tex(about)}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * (len(lines[0]) - 1)}}}",
        r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}}",
        *([below] if notes else []), rf"\end{{{kind}}}", "",
    ])  # fmt: skip
