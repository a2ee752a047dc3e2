# The book's commands. Python 3.11, 3.12 or 3.13 is all they need; the rest they install into .venv.
#
#   make book       build the site, warnings as errors
#   make pdf        build the site, then print it as one book (needs a Chromium)
#   make test       lint, types, unit, property and notebook tests
#   make test-site  build the site, then read it in a browser: every page, link, search (needs a Chromium)
#   make notebooks  run every notebook afresh and store its outputs (or: make notebooks NB=notebooks/02_pooling.ipynb)
#   make serve      build the site, then serve it on this machine
#   make lock       renew requirements.lock from pyproject.toml
#   make address    carry the repository's address from _config.yml to everywhere else
#   make clean      remove what was built, but not .venv

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help book pdf test test-site notebooks serve lock address clean

BIN := .venv/bin
PORT ?= 8000
NB ?=

help:
	@sed -n 's/^#   //p' Makefile

# The first Python of these that is one the book supports; set PYTHON to choose another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo $$python && break; done)

# Everything is installed again when the lock or the project's own metadata changes. uv needs
# seconds where pip needs a minute; the lock says which uv, and --require-hashes holds for all.
.venv/ready: requirements.lock pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "No Python 3.11, 3.12 or 3.13 was found. Install one, or name yours: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv || { rm -rf .venv; echo "$(PYTHON) could not make a virtual environment. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep -o '^uv==[^ ]*' requirements.lock)"
	$(BIN)/uv pip sync --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

# The site starts empty, so that no page of a former build is left in it.
book: .venv/ready
	rm -rf _build/html
	$(BIN)/jupyter-book build . -W -n --keep-going
	@echo "The book is built. Open file://$(CURDIR)/_build/html/index.html"

pdf: book
	$(BIN)/python book/_ext/pdf.py _build/html _build/The-CBAM-Book.pdf

# A worker a core, each with one thread: more only get in each other's way. Coverage counts what
# the tests assert something of; that a notebook runs through a line proves little. The chapters
# run as on Colab: by nbval, from empty folders, with a wheel.
test: export CBAM_EDU_QUICK = 1
test: export OMP_NUM_THREADS = 1
test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadfile --cov --cov-report term --cov-fail-under 95 tests
	$(BIN)/python tests/colab.py

# A browser a core. What is timed comes afterwards, alone.
test-site: export OMP_NUM_THREADS = 1
test-site: book
	$(BIN)/pytest -n 2 --dist worksteal --ignore tests/browser/test_first_page.py tests/browser
	$(BIN)/pytest --quiet --capture no tests/browser/test_first_page.py
	$(BIN)/python tests/reproducible.py _build/html

notebooks: .venv/ready
	$(BIN)/python book/_ext/notebooks.py run $(NB)

serve: book
	@echo "Serving http://localhost:$(PORT) until you press Ctrl-C"
	@$(BIN)/python -m http.server $(PORT) --bind localhost --directory _build/html

# Universal: one lock for Python 3.11 to 3.13, on Linux, macOS and Windows.
lock: .venv/ready
	$(BIN)/uv pip compile --universal --python-version 3.11 --all-extras --generate-hashes --upgrade \
		--quiet --custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

address: .venv/ready
	$(BIN)/python book/_ext/address.py write

clean:
	rm -rf _build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.*
