# make test · make demo · make docs · make lint: each makes its own virtual environment first.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin

.PHONY: test lint demo docs clean

test: lint
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: $(VENV)/ready
	$(BIN)/python -m benchmarks demo

docs: $(VENV)/ready
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build

clean:
	rm -rf docs/_build $(VENV) .mypy_cache .pytest_cache .ruff_cache

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[test,benchmarks]"
	$(BIN)/python -c "import laplace, laplace_fiber"
	touch $@
