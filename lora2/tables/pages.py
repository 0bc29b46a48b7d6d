"""Refresh the generated tables in README and docs, between markers; ``--check`` only compares.

python -m lora2.tables.pages [--check]
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from lora2.records.store import write_pages

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"(<!-- begin (?P<path>results/\S+\.md) -->\n).*?(<!-- end -->)", re.DOTALL)


def refresh(text: str, root: Path = ROOT) -> str:
    """Return ``text`` with every ``BLOCK`` replaced by the first table of the file it names."""

    def fill(match: re.Match[str]) -> str:
        table = first_table((root / match["path"]).read_text(encoding="utf-8"))
        return f"{match[1]}\n{table}\n\n{match[3]}"

    return BLOCK.sub(fill, text)


def first_table(markdown: str) -> str:
    """Return a table file up to the notes of its first table, headings two levels lower."""
    lines: list[str] = []
    for line in markdown.splitlines():
        if line.startswith("#") and any(above.startswith("|") for above in lines):
            break
        lines.append(f"##{line}" if line.startswith("#") else line)
    return "\n".join(lines).strip()


def main(argv: Sequence[str]) -> int:
    pages = {path: refresh(path.read_text(encoding="utf-8")) for path in PAGES}
    return write_pages(pages, argv, "python -m lora2.tables.pages")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
