# Needs make, a shell and Python 3.11 or newer with pip and venv; everything else goes into .venv.
PYTHON ?= python3
ARGS ?=

IN_VENV := .venv/bin/python -m
INSTALL := $(IN_VENV) pip install --disable-pip-version-check -c constraints.txt
RECIPE  := setup.cfg pyproject.toml constraints.txt
SHELL_SCRIPTS := .ci/run bench/gpu/start.sh launch/node.sh launch/own_text.sh launch/environment.sh launch/slurm/*.sbatch

# All tests of a file run in one process, so that its fixtures are made once.
TEST_PROCESSES := -n auto --maxprocesses 8 --dist loadfile
# Without bytecode files, every process that a test starts compiles the project again.
CACHED := PYTHONDONTWRITEBYTECODE=
# One process each for the SLURM tests and for several hosts, which mostly wait, and one for the others.
LONG_PROCESSES := -n 3 --dist loadfile

.DELETE_ON_ERROR:
.PHONY: help setup setup-dev run test test-long soak check tree clean

help: ## list these targets
	@awk -F ' *## *' '/^[a-z-]+:.*##/ { sub(/:.*/, "", $$1); printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo "PYTHON=python3.12 selects another Python. make run takes NPROC=4 and ARGS='--steps 50'."
	@echo "make run TEXT=story.txt trains on your own text (TEXT='a.txt b.txt' on several)."

setup: .venv/.installed ## make .venv and install the project into it

setup-dev: .venv/.installed-dev ## the same, and what tests and checks need

# Only TEXT=… of the command line counts: another program may have set a variable of that name.
ifeq ($(origin TEXT),command line)
run: .venv/.installed
	launch/own_text.sh $(ARGS)
else
run: .venv/.installed data/demo/manifest.json ## train a small model, or continue it: a few minutes on a laptop
	launch/node.sh demo $(ARGS)
endif

test: .venv/.installed-dev ## run the test suite
	$(CACHED) $(IN_VENV) pytest $(TEST_PROCESSES) $(ARGS)

test-long: .venv/.installed-dev ## run the slow tests: faults, several hosts, SLURM (apt-get installs it if you are root)
	$(CACHED) $(IN_VENV) pytest -m long $(LONG_PROCESSES) $(ARGS)

soak: data/demo/manifest.json ## kill a run five hundred times; takes hours
	.venv/bin/python train/prove_resume.py demo --nproc 4 --kills 500 --steps 2000 --save.every 20 $(ARGS)

check: .venv/.installed-dev ## run ruff, pyright, the layout rules and shellcheck
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright --pythonpath .venv/bin/python
	$(IN_VENV) pytest tests/test_house.py
	.venv/bin/shellcheck -x $(SHELL_SCRIPTS)

tree: .venv/.installed ## write the list of every file into ARCHITECTURE.md
	$(IN_VENV) tests.file_tree

clean: ## remove .venv and caches, but never data/ and runs/
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build ratchet.egg-info
	find . -name __pycache__ -type d -not -path './data/*' -not -path './runs/*' -prune -exec rm -rf {} +

# --- what the targets above need ---

.venv/bin/pip:
	@command -v "$(PYTHON)" >/dev/null || { \
	    echo "$(PYTHON) is not on PATH; install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$$("$(PYTHON)" --version) is too old: Ratchet needs 3.11 or newer; name another one: make PYTHON=python3.12" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv

.venv/.installed: $(RECIPE) | .venv/bin/pip
	$(INSTALL) -e '.[fast]'
	@touch $@

.venv/.installed-dev: $(RECIPE) | .venv/bin/pip
	$(INSTALL) -e '.[dev]'
	@touch .venv/.installed $@

data/demo/manifest.json: | .venv/.installed
	.venv/bin/python data_prep/text.py --embedded --vocab-size 4096 --out data/demo
