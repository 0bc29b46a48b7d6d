"""The generated tables in pages, between markers; ``--check`` tells whether they are stale.

python -m lora2.tables.readme [--check]
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from lora2.records.store import write_atomically

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("docs/embedded.md", "docs/bench.md")
BLOCK = re.compile(r"(<!-- begin (?P<path>results/\S+\.md) -->\n).*?(<!-- end -->)", re.DOTALL)


def refresh(text: str, root: Path = ROOT) -> str:
    """Return ``text`` with every block replaced by the first table of the file it names.

    A block stands between ``<!-- begin results/PROFILE/tableN.md -->`` and ``<!-- end -->``. What a
    table says before its first grid (title, warnings, how to read it) and under it comes along.

    Raises:
        FileNotFoundError: a block names a table that is not there.
    """

    def fill(match: re.Match[str]) -> str:
        table = first_table((root / match["path"]).read_text(encoding="utf-8"))
        return f"{match[1]}\n{table}\n\n{match[3]}"

    return BLOCK.sub(fill, text)


def first_table(markdown: str) -> str:
    """Return a table file to the end of its first table's notes, headings made smaller."""
    lines: list[str] = []
    for line in markdown.splitlines():
        if line.startswith("#") and any(one.startswith("|") for one in lines):
            break
        lines.append(f"##{line}" if line.startswith("#") else line)
    return "\n".join(lines).strip()


def main(argv: Sequence[str]) -> int:
    """Rewrite the pages, or with --check exit 1 if that would change one."""
    stale = 0
    for path in (ROOT / page for page in PAGES):
        old = path.read_text(encoding="utf-8")
        new = refresh(old)
        if "--check" not in argv:
            write_atomically(path, new)
        elif new != old:
            print(f"{path.name} is stale: run python -m lora2.tables.readme", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
