"""The LaTeX tables compile (Debian: texlive-latex-base, texlive-latex-recommended)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("[utf8]{inputenc}", "[T1]{fontenc}", "{textcomp}", "{booktabs}", "{graphicx}",
            "{rotating}")  # fmt: skip
pytestmark = [
    pytest.mark.slow,
    pytest.mark.latex,
    pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine"),
]


def compiled(tables: list[Path], folder: Path) -> str:
    """Compile a document of these tables in ``folder`` and return what pdflatex said."""
    assert {f"table{number}.tex" for number in (1, 2, 3, 4)} <= {path.name for path in tables}
    uses = "\n".join(rf"\usepackage{package}" for package in PACKAGES)
    inputs = "\n".join(rf"\input{{{path}}}" for path in sorted(tables))
    (folder / "all.tex").write_text(
        f"\\documentclass{{article}}\n{uses}\n\\begin{{document}}\n{inputs}\n\\end{{document}}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-1500:]
    assert (folder / "all.pdf").stat().st_size > 1000
    return done.stdout


def test_committed_tables_compile(tmp_path):
    compiled(list((ROOT / "results").glob("*/table*.tex")), tmp_path)


def test_tables_made_now_fit_the_line(tmp_path):
    folder = tmp_path / "embedded"
    folder.mkdir()
    for name in ("runs.csv", "table2.csv"):
        shutil.copy(ROOT / "results" / "embedded" / name, folder)
    command = [sys.executable, "scripts/report.py", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    assert "Overfull" not in compiled(list(folder.glob("table*.tex")), tmp_path)
