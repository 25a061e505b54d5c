# One target for each thing that a person does. As root, or with sudo for the packages that are missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup system demo test quick lint bench docs clean realtools long test-s390x

help:
	@echo "make demo    install what is missing, then tell the whole story, once, on this machine"
	@echo "make test    install what is missing, then run all tests, machines included"
	@echo "make quick   the tests that start no machine"
	@echo "make lint    format, lint, types"
	@echo "make bench   measure, side by side, as ratios"
	@echo "make long    the tests that are too long for each day: authenticated volumes, samples, libvirt, a root built inside, twenty volumes and thirty containers"
	@echo "make test-s390x  build an image for IBM Z (some minutes, then cached), start machines of it under emulation"
	@echo "make realtools  compare with the library of the tools for IBM Z, built with cargo, and with cosign, built with go"
	@echo "make docs    make the generated pages anew"
	@echo "make clean   forget the virtual environment and what tools have cached here"

.venv/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

setup: .venv/.ready

system: setup
	@$(BIN)/casemate doctor --install

demo: system
	@$(BIN)/casemate demo

test: system lint
	$(BIN)/python -m pytest -m "not long"

long: system
	CASEMATE_LONG=1 $(BIN)/python -m pytest -m long

test-s390x: system
	@$(BIN)/casemate doctor --install --for s390x
	CASEMATE_S390X=1 $(BIN)/python -m pytest tests/machine/test_s390x.py

quick: setup
	$(BIN)/python -m pytest -m "not machines"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: system
	@for bench in bench/bench_*.py; do echo "# $$bench"; $(BIN)/python $$bench || failed=1; done; exit $${failed:-0}

docs: setup
	@for tool in tools/*.py; do $(BIN)/python $$tool; done

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis

realtools: system
	CASEMATE_REALTOOLS=1 $(BIN)/python -m pytest tests/secureexec/test_realtools.py tests/guest/test_image_signatures.py
