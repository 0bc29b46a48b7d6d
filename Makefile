PYTHON ?= python3
PROFILE ?= auto
SEEDS ?= null
CLUSTER ?= local
TABLE ?= 1
ROW ?= lora2-k8
RESULTS ?= results/embedded
KILLS ?= 50
STUDY ?= small-cpu
ARGS ?=
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
TOOLS := $(VENV)/.tools
REPRODUCE = $(PY) scripts/reproduce.py profile=$(PROFILE) seeds=$(SEEDS) cluster=$(CLUSTER) $(ARGS)
TABLES := table1 table2 table3 table4 figure3 roberta-large

.PHONY: quickstart test coverage test-slow test-faults test-slurm test-latex test-ecosystem wheel \
	lint plan report report-study submission audit bench study clean reproduce-all \
	$(TABLES:%=reproduce-%)

# All four tables, Figure 3, the audit and Table 5 without a GPU or a hub.
# The tables go into a folder of their own, so that the committed results stay as they are.
quickstart: $(READY)
	$(PY) scripts/reproduce.py table=all profile=embedded results.dir=results/quickstart $(ARGS)
	$(MAKE) --no-print-directory audit

test: $(TOOLS)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2

# Lines of lora2/ that the default suite runs, the workers of its sweeps included.
coverage: $(TOOLS)
	OMP_NUM_THREADS=1 $(PY) -m coverage run -m pytest
	$(PY) -m coverage combine --quiet
	$(PY) -m coverage report

test-slow: $(TOOLS)
	$(PY) -m pytest -m "slow and not latex"

# Kills, full disks, crowds, divergence, want of memory (docs/faults.md). KILLS=5 takes less time.
test-faults: $(TOOLS)
	$(PY) -m pytest -m "slow or not slow" tests/faults
	$(PY) -m tests.faults.kill_sweep --kills $(KILLS)

# A real Slurm on this machine (Debian, as root): installed, started, a job killed and requeued.
test-slurm: $(TOOLS)
	bash tests/slurm/run.sh

# Compiles the tables with Debian's TeX Live.
test-latex: $(TOOLS)
	$(PY) -m pytest -m latex

# TRL, sentence-transformers, quantised bases and ONNX, in a copy of the venv.
test-ecosystem: $(TOOLS)
	rm -rf .venv-ecosystem && cp -a $(VENV) .venv-ecosystem
	.venv-ecosystem/bin/python -m pip install --quiet -r tests/ecosystem/requirements.txt
	OMP_NUM_THREADS=1 .venv-ecosystem/bin/python -m pytest -n 0 -m ecosystem tests/ecosystem

# The library's wheel and sdist in dist/, checked.
wheel: $(READY)
	$(PY) -m pip install --quiet build twine
	$(PY) -m build
	$(PY) -m twine check --strict dist/*

lint: $(TOOLS)
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(TABLES:%=reproduce-%): reproduce-%: $(READY)
	$(REPRODUCE) table=$(*:table%=%)

reproduce-all: $(READY)
	$(REPRODUCE) table=all

# The zip for the GLUE server, of one row's finished runs: make submission ROW=lora2-k8 SEEDS=1
submission: $(READY)
	$(REPRODUCE) table=$(TABLE) rows=$(ROW) submission=true

plan: $(READY)
	$(REPRODUCE) table=$(TABLE) plan=true

# Rates chosen on rows held out of train, then final runs: PROFILE=small-cpu, small or paper.
study: $(READY)
	$(PY) scripts/study.py study=$(PROFILE) $(ARGS)

report: $(READY)
	$(PY) scripts/report.py $(RESULTS)
	$(PY) -m lora2.tables.pages

# docs/study.md, its figure and README's lines on it, from the CSVs in results/small alone.
report-study: $(READY)
	$(PY) -m lora2.study.page $(STUDY) results/small

# Times the methods on this device; ARGS="--only step --rounds 20" for a part.
bench: $(READY)
	$(PY) scripts/bench.py $(ARGS)
	$(PY) scripts/bench.py --targets
	$(PY) -m lora2.tables.pages

audit: $(READY)
	$(PY) -m lora2.paper.audit

# torch first: whatever depends on it must find the pinned build and not fetch another.
# Byte-compiling everything takes as long as installing it. Every run imports what stands in
# COMPILED, so that is compiled, beside pip; of the rest Python compiles what it imports.
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --no-compile
COMPILED := torch sympy numpy pandas scipy
$(READY): requirements.txt pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) $$(grep -E '^(torch|pandas|scipy)==' requirements.txt)
	$(PY) -m compileall -q $(COMPILED:%=$(VENV)/lib/python*/site-packages/%) & \
	$(PIP) $$(sed '/^# tests/,/^# CLUSTER/d' requirements.txt | grep ==) setuptools && wait
	$(PIP) --no-deps --no-build-isolation -e .
	touch $(READY)

# Tests and checks need more than the runs.
$(TOOLS): $(READY) requirements.txt
	$(PIP) -r requirements.txt
	touch $(TOOLS)

clean:
	rm -rf build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache .coverage*
