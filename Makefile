# Everything runs in .venv/, made from nothing by `make setup` with pip.
PYTHON ?= python3
BIN := .venv/bin
EXPERTS := $(wildcard ../shared/experts)
export TASKMERGE_EXPERTS ?= $(abspath $(EXPERTS))
TINY := examples/tiny

.PHONY: setup quickstart test test-slow lint docs bench tables clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

quickstart: setup
	mkdir -p quickstart
	$(BIN)/taskmerge merge --method cart --rank 0.08 $(TINY)/*.safetensors -o quickstart/cart.safetensors --overwrite
	$(BIN)/taskmerge merge --method average $(TINY)/*.safetensors -o quickstart/average.safetensors --overwrite
	$(BIN)/taskmerge merge --method task-arithmetic $(TINY)/*.safetensors -o quickstart/task-arithmetic.safetensors --overwrite
	$(BIN)/taskmerge adapt --suite $(TINY) --no-scores -o quickstart/adapted --overwrite
	$(BIN)/taskmerge eval base experts quickstart/average.safetensors quickstart/task-arithmetic.safetensors \
		quickstart/cart.safetensors quickstart/adapted --suite $(TINY)/suite.yaml

test: setup
	$(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist worksteal

test-slow: setup
	$(BIN)/python -m pytest -q -m 'slow and not cuda'

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

docs: setup
	$(BIN)/python docs/generate.py

bench: setup
	$(BIN)/python benchmarks/merge.py
	$(BIN)/python benchmarks/spectral.py
	OMP_WAIT_POLICY=passive $(BIN)/python benchmarks/adapt.py --rounds 3

tables: setup
	$(BIN)/python docs/generate.py
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python benchmarks/tables.py --adapt-split test

clean:
	rm -rf .venv quickstart build dist
