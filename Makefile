# Two commands do everything on a fresh machine with Python 3.11 or newer:
#   make quickstart   the whole path, from raw bytes to a released tiny model, in runs/quickstart
#   make test         the fast tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Files of tests go to as many processes as there are cores, up to four: each takes two gigabytes.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses=4 --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q

.PHONY: quickstart test test-slow lint docs readme-check clean help

help:
	@sed -n 's/^# \?//p' Makefile | head -4

quickstart: $(VENV)/.installed
	$(BIN)/python -m experiments.run --config=configs/quickstart.py --workdir=runs/quickstart

test: $(VENV)/.installed-test lint
	$(PYTEST) -m "not slow"

# Long tests, and live comparisons with the references (torch, transformers).
test-slow: $(VENV)/.installed-reference $(VENV)/.installed-compilers
	$(PYTEST) -m slow

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/pyrefly check --python-interpreter-path=$(BIN)/python

# One site of README, docs/, the log, every command's help and the docstrings: build/docs/index.html.
docs: $(VENV)/.installed-docs
	$(BIN)/python docs/build.py

# README's recipes as they are typed, with the seconds of each, its cheap figures again, and eight
# hundred mistyped lines: longer than CI can wait each time. In parts: make readme-check PART=recipes.
PART ?= figures recipes lines
CHECK_figures := tests/test_readme.py
CHECK_recipes := tests/test_recipes.py
CHECK_lines := tests/experiments/test_bad_lines.py
readme-check: $(VENV)/.installed-test
	README_CHECK=1 $(BIN)/python -m pytest -s -m "slow or not slow" $(foreach p,$(PART),$(CHECK_$(p)))

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("smoljax needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt | $(BIN)/python
	@echo "Installing requirements.txt into $(VENV) (a minute or two)"
	$(PIP) -r requirements.txt
	@touch $@

$(VENV)/.installed-test: pyproject.toml $(VENV)/.installed
	$(PIP) $$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["test"])')
	@touch $@

$(VENV)/.installed-docs: pyproject.toml $(VENV)/.installed
	$(PIP) $$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	@touch $@

$(VENV)/.installed-reference: pyproject.toml $(VENV)/.installed-test
	$(PIP) $$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["reference"])')
	@touch $@

# XLA's compilers for TPUs and GPUs, for steps that run elsewhere (experiments.run --estimate). Apart:
# where jax finds them it looks for such devices.
$(VENV)/.installed-compilers: $(VENV)/.installed
	$(PIP) --no-deps --target $(VENV)/compilers $$($(BIN)/python -c 'from importlib.metadata import requires, version; j = version("jax"); print(f"jax-cuda13-plugin=={j} jax-cuda13-pjrt=={j}", *(r.split(";")[0] for r in requires("jax") if r.startswith("libtpu")))')
	@touch $@

clean:
	rm -rf $(VENV) runs
