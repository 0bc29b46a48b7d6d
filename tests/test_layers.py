"""A room of lora2/ imports only the rooms before it (docs/architecture.md): no circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "lora2"
ROOMS = (
    "tuners", "embedded", "glue", "config", "records", "paper", "run", "bench", "sweep", "tables",
    "study",
)  # fmt: skip
FACADE = PACKAGE / "__init__.py"  # names the public parts of the tuners


def imports(path: Path) -> Iterator[str]:
    """Yield the dotted names of this package that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("lora2."))
        elif isinstance(node, ast.ImportFrom) and node.module == "lora2":
            yield from (f"lora2.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lora2."):
            yield node.module


def floor(name: str) -> int:
    """Return the place of a room, -1 for a file that lies in lora2/ itself."""
    return ROOMS.index(name) if name in ROOMS else -1


def test_each_room_imports_only_rooms_before_it():
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for name in imports(path)
        if path != FACADE and floor(path.relative_to(PACKAGE).parts[0]) < floor(name.split(".")[1])
    ]
    assert not wrong, "\n".join(wrong)


def test_every_folder_is_a_room():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ROOMS)
