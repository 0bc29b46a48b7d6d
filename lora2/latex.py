"""A table as a LaTeX float."""

from __future__ import annotations

from collections.abc import Sequence

from lora2.markup import tex

UPRIGHT = 9  # columns; a wider table is turned, or its letters would be too small to read


def tex_float(
    table: int | str, about: str, lines: Sequence[Sequence[str]], notes: Sequence[str] = ()
) -> str:
    """A float of unescaped text, shrunk to the line's width: caption, head, rows, notes below.

    LaTeX writes the number itself. The document needs the packages booktabs and graphicx, and
    rotating for a table of more than nine columns, which is turned on its side.
    """
    head, *rows = lines
    kind = "table" if len(head) <= UPRIGHT else "sidewaystable"
    below = rf"\par\smallskip{{\footnotesize\raggedright {tex(' '.join(notes))}\par}}"
    return "\n".join(
        [
            rf"\begin{{{kind}}}",
            r"\centering",
            rf"\caption{{{tex(about.removeprefix(f'Table {table}: '))}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            " & ".join(tex(text) for text in head) + r" \\",
            r"\midrule",
            *(" & ".join(tex(text) for text in row) + r" \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}}",
            *([below] if notes else []),
            rf"\end{{{kind}}}",
            "",
        ]
    )
