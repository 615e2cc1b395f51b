# make demo    set up .venv, pretrain on the embedded sample (a few minutes on two cores), evaluate, report
# make test    set up .venv, run every test
# make lint    ruff, import-linter and mypy
# make clean   remove caches and build leftovers; runs/ and .venv stay
# PYTHON=python3.12 make demo   takes another interpreter (3.11 or later)

PYTHON ?= python3
READY := .venv/ready

# Modules are compiled once and kept, whatever the caller's environment says: else every process compiles PyTorch again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test lint setup clean

demo: $(READY)
	@echo "== Pretraining, evaluating and reporting: runs/demo"
	.venv/bin/openjepa demo --out runs/demo

test: $(READY)
	@echo "== Testing"
	.venv/bin/python -m pytest -q -n 2 --dist worksteal

lint: $(READY)
	@echo "== Linting and type checking"
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports
	.venv/bin/mypy

setup: $(READY)

# One environment for everything, made again when what it needs changes. --no-compile saves most of a minute: Python
# compiles the modules that are used when they are.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "OpenJEPA needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: PYTHON=python3.12 make"; exit 2; }
	@echo "== Setting up .venv with the versions in constraints.txt: about 6 GB (PyTorch and its libraries), a few minutes"
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev,hf,onnx,fp8,detection]'
	@touch $(READY)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find openjepa tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
