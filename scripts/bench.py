"""Time and memory of every method on this device: see ``--help`` and docs/bench.md."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

# Also where the package is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    # transformers announces its own renamings once per model.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    from lora2.bench.cli import main

    sys.exit(main(sys.argv[1:]))
