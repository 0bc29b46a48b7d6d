"""The page of a study, docs/study.md, from its committed CSVs; README's headline with it.

python -m lora2.report.study results/small
python -m lora2.report.study results/small --check
python -m lora2.report.study results/paper --page docs/study-paper.md
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lora2.experiment.problems import ConfigError
from lora2.report import study_figures, study_protocol, study_tables
from lora2.report.store import StoreError, write_atomically
from lora2.report.study_answers import answers, headline
from lora2.report.study_claims import claims
from lora2.report.study_data import Results, read
from lora2.report.study_gaps import RULE

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "study.md"
README = ROOT / "README.md"
BLOCK = re.compile(r"(<!-- begin study:(?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
FIGURE_TITLES = {
    "study_parameters": "Score against trainable parameters",
    "study_curves": "Learning curves",
    "study_seeds": "Scores of every seed",
}
FIGURE_3 = "Figure 3: singular values left in each matrix of each layer"


def results_part(results: Results) -> list[str]:
    """Scores of every table of the study, and the cells that did not start."""
    lines: list[str] = []
    for table in results.tables:
        lines += [f"### {study_tables.title(table)}", "", *study_tables.scores(results, table), ""]
    return [*lines, *study_tables.idle_note(results)]


BLOCKS: Mapping[str, Callable[[Results], list[str]]] = {
    "protocol": study_protocol.protocol,
    "results": results_part,
    "significance": study_tables.significance,
    "cost": study_tables.cost,
    "rule": lambda results: [RULE],
    "answers": answers,
    "claims": claims,
    "headline": headline,
}


def fill(text: str, results: Results, images: str) -> str:
    """Return ``text`` with what stands in its blocks made anew; the rest stays as it is.

    A block stands between ``<!-- begin study:NAME -->`` and ``<!-- end -->``. ``images`` is the
    path from the page's folder to that of the figures.

    Raises:
        ValueError: a block of an unknown name.
    """

    def made(match: re.Match[str]) -> str:
        name = match["name"]
        if name == "figures":
            titles = FIGURE_TITLES | ({"figure3": FIGURE_3} if results.has("figure3") else {})
            lines = [f"![{title}]({images}/{file}.png)" for file, title in titles.items()]
            body = "\n\n".join(lines)
        elif name in BLOCKS:
            body = "\n".join(BLOCKS[name](results)).strip()
        else:
            known = ", ".join([*BLOCKS, "figures"])
            raise ValueError(f"no block study:{name}: allowed are {known}")
        return f"{match[1]}\n{body}\n\n{match[3]}"

    return BLOCK.sub(made, text)


def pages(results: Results, folder: Path, page: Path) -> dict[Path, str]:
    """Return the new text of the page, and of README if it is the repository's own page.

    A page that is not there yet gets the prose of docs/study.md.
    """
    source = page if page.is_file() else PAGE
    images = Path(os.path.relpath(folder.resolve(), page.resolve().parent)).as_posix()
    texts = {page: fill(source.read_text(encoding="utf-8"), results, images)}
    if page.resolve() == PAGE:
        texts[README] = fill(README.read_text(encoding="utf-8"), results, "")
    return texts


def main(argv: Sequence[str] | None = None) -> int:
    """Write page and figures, or with ``--check`` say whether the page is stale (then 1)."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="results folder of a study, e.g. results/small")
    parser.add_argument("--page", type=Path, default=PAGE, help="default: docs/study.md")
    parser.add_argument("--check", action="store_true", help="only say whether it is stale")
    args = parser.parse_args(argv)
    try:
        results = read(args.folder)
        texts = pages(results, args.folder, args.page)
    except (StoreError, ConfigError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    if args.check:
        stale = [
            path for path, text in texts.items()
            if not path.is_file() or path.read_text(encoding="utf-8") != text
        ]  # fmt: skip
        for path in stale:
            print(f"{path} is stale: run python -m lora2.report.study {args.folder}",
                  file=sys.stderr)  # fmt: skip
        return int(bool(stale))
    for path, text in texts.items():
        write_atomically(path, text)
    written = [*texts, *study_figures.write(results, args.folder)]
    print("\n".join(f"wrote {path}" for path in written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
