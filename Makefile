# `make book` builds the book, `make test` runs all tests; both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
export PYTHONPATH :=
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: book test lint clean help
help:
	@echo "make book   train the quick study, execute the notebooks, build the HTML"
	@echo "make test   lint, unit tests, nbval on the executed notebooks"
	@echo "make clean  drop what was built (not the environment, not the runs)"

.venv/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dynmia needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[book,test]'
	$(BIN)/python -m pip install --quiet --no-deps --ignore-requires-python tensorflow-privacy==0.8.12  # its LiRA, as an oracle
	touch $@

book: .venv/ready
	$(BIN)/dynmia notebooks
	$(BIN)/jupyter-book build book --all -W --keep-going -n
	@echo "The book is at $(CURDIR)/_build/html/index.html"

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest --nbval --nbval-current-env $(wildcard book/results/*.ipynb)

clean:
	rm -rf _build book/results/trained-here.ipynb .pytest_cache .mypy_cache .ruff_cache
