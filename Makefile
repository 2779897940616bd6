# `make book` builds the book, `make test` runs all tests; both set up .venv first.
PYTHON ?= python3
VENV ?= .venv
LOCK ?= requirements.lock  # versions that were tested together; `make test LOCK=` takes the newest
BIN := $(VENV)/bin
export PYTHONPATH :=
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: book test fast lint lock lowest clean help
help:
	@echo "make book    train the quick study, execute the notebooks, build the HTML"
	@echo "make test    lint, unit tests, nbval on the executed notebooks"
	@echo "make fast    the unit tests that take seconds, for example with PYTHON=python3.13 VENV=.venv-3.13"
	@echo "make lowest  the same with the lowest versions that pyproject.toml allows, in .venv-lowest"
	@echo "make lock    write requirements.lock anew: the newest versions that fit together"
	@echo "make clean   drop what was built (not the environment, not the runs)"

$(VENV)/ready: pyproject.toml $(LOCK)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dynmia needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(addprefix --constraint ,$(LOCK)) --editable '.[book,test]'
	$(BIN)/python -m pip install --quiet --no-deps --ignore-requires-python tensorflow-privacy==0.8.12  # its LiRA, as an oracle
	touch $@

book: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/dynmia notebooks  # two at once, each on one core
	$(BIN)/jupyter-book build book --all -W --keep-going -n
	@echo "The book is at $(CURDIR)/_build/html/index.html"

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n auto --dist worksteal
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --nbval --nbval-current-env -n auto --dist loadfile $(wildcard book/results/*.ipynb)

fast: $(VENV)/ready
	$(BIN)/python -m pytest -m "not slow"

lock: $(VENV)/ready
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra book --extra test --universal --python-version 3.11 --upgrade \
		--no-annotate --no-emit-index-url --custom-compile-command "make lock" --quiet --output-file requirements.lock

lowest: $(VENV)/ready
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv venv --quiet --allow-existing --python $(PYTHON) .venv-lowest
	$(BIN)/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct --editable '.[test]'
	.venv-lowest/bin/python -m pytest -m "not slow"

clean:
	rm -rf _build book/results/trained-here.ipynb .pytest_cache .mypy_cache .ruff_cache
