#!/usr/bin/env bash
# mnli with LoRA2 at the public scripts' settings; extra arguments go to run_glue.py, e.g. seed=1.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] && python=.venv/bin/python || python=python3
exec "${PYTHON:-$python}" scripts/run_glue.py task=mnli method=lora2 ranks=public "$@"
