# make test: lint, types and tests, in the active interpreter where it has what they need, else in .venv
.PHONY: test lint types unit coverage docs format upstream windows slow clean

PYTHON ?= python3
NEEDS := import torch, accelerate, diffusers, safetensors, toml, PIL, imagehash, tqdm, pytest, xdist, hypothesis, mypy, ruff, transformers, coverage
VENV := .venv
DOCS_NEEDS := import mkdocs, material, mkdocstrings
DOCS_VENV := .venv-docs
PY := $(shell if $(PYTHON) -c "$(NEEDS)" 2>/dev/null; then echo $(PYTHON); else echo $(VENV)/bin/python; fi)
DOCS_PY := $(shell if $(PYTHON) -c "$(DOCS_NEEDS)" 2>/dev/null; then echo $(PYTHON); else echo $(DOCS_VENV)/bin/python; fi)

test: lint types unit

lint: ready
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: ready
	$(PY) -m mypy

unit: ready
	$(PY) -m pytest --numprocesses auto --dist worksteal

# lines of the package that the tests run, in their own process and in those they start; htmlcov/ shows which they do not
coverage: ready
	$(PY) -m coverage erase
	$(PY) -m coverage run -m pytest
	$(PY) -m coverage combine --quiet
	$(PY) -m coverage html --quiet
	$(PY) -m coverage report

# the widest matrices and fault sweeps, minutes each
slow: ready
	$(PY) -m pytest --slow -m slow --numprocesses auto --dist worksteal

# real Kohya trees: KOHYA_SS_GIT, SD_SCRIPTS_GIT, SD_SCRIPTS_FORK_GIT name git directories of them
upstream: ready
	$(PY) -m pytest -m upstream tests/upstream

# what needs no torch, by a Windows Python: KOHYA_EXT_WINDOWS_PYTHON is the command that starts one (under wine, say)
windows:
	@test -n "$(KOHYA_EXT_WINDOWS_PYTHON)" || { echo "KOHYA_EXT_WINDOWS_PYTHON must name the command that starts a Windows Python with pytest, xdist, hypothesis, pillow and toml"; exit 2; }
	$(KOHYA_EXT_WINDOWS_PYTHON) -m pytest -m windows -p no:cacheprovider </dev/null 2>&1 | cat

# the site, into site/: strict, and from what is installed once its tools are there
docs:
	@$(DOCS_PY) -c "$(DOCS_NEEDS)" 2>/dev/null || { $(PYTHON) -m venv $(DOCS_VENV) && $(DOCS_VENV)/bin/python -m pip install --quiet --requirement requirements-docs.txt; }
	$(DOCS_PY) docs/generate.py --check
	$(DOCS_PY) -m mkdocs build --strict --quiet

format: ready
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

ready:
	@$(PY) -c "$(NEEDS)" 2>/dev/null || { $(PYTHON) -m venv $(VENV) && $(VENV)/bin/python -m pip install --quiet --requirement requirements-dev.txt; }

clean:
	rm -rf htmlcov .coverage .coverage.* $(VENV) $(DOCS_VENV) site build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
