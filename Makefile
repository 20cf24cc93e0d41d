# `make help` prints what there is. Nothing but Python 3.11+, Rust, a C compiler and make is needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
REQUIREMENTS := $(BIN)/python scripts/requirements.py
INSTALL := PATH="$(abspath $(BIN)):$$PATH" $(PIP) install -c requirements.lock --no-build-isolation
NATIVE := $(shell find crates -name '*.rs' -o -name '*.toml' -o -name '*.proto') Cargo.toml Cargo.lock
DEBIAN := build-essential curl git python3-dev python3-venv redis-server
WHEEL_GLIBC := manylinux_2_28
MAKEFLAGS += --no-print-directory
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help all setup setup-system demo test soak lint lint-python lint-rust lint-house format bench loc docs licenses lock wheel clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 15

all: lint test demo ## everything a change has to pass, then the demo

setup: $(VENV)/.tools $(VENV)/.native ## .venv with a release build in it, so that .venv/bin/lrai works

setup-system: ## Debian packages that the build and the tests need (as root)
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(DEBIAN)

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: Python %d.%d is too old. hint: make PYTHON=python3.11 ..." % sys.version_info[:2])'
	@command -v cargo > /dev/null || { echo "error: no cargo. hint: install Rust with rustup" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c requirements.lock maturin
	@touch $@

$(VENV)/.demo: $(VENV)/.created pyproject.toml requirements.lock
	$(REQUIREMENTS) demo > $(VENV)/demo.txt
	$(INSTALL) -r $(VENV)/demo.txt
	@touch $@

# rapidocr and silero-vad are here for the real models inside them, without what would run them.
$(VENV)/.tools: $(VENV)/.created pyproject.toml requirements.lock
	$(REQUIREMENTS) test dev > $(VENV)/tools.txt
	$(INSTALL) -r $(VENV)/tools.txt
	$(INSTALL) --no-deps rapidocr silero-vad
	@touch $@

# The editable install compiles the native half, in release mode.
$(VENV)/.native: $(VENV)/.demo $(NATIVE)
	@echo "building lrai into $(VENV) (1 to 4 minutes the first time)"
	@touch $@.begun # sources that change meanwhile are newer than this, and are built next time
	$(INSTALL) --no-deps -e .
	@mv $@.begun $@

demo: $(VENV)/.native ## train small models, serve them, check every answer, kill an actor meanwhile
	$(BIN)/python examples/demo.py

test: setup ## cargo test and pytest, with short chaos and fuzz runs
	@status=0; \
	cargo test --locked --quiet --no-fail-fast || status=1; \
	$(BIN)/python -m pytest || status=1; \
	exit $$status

soak: setup ## the long tests: chaos, fuzz, memory, real models
	$(BIN)/python -m pytest -m slow --timeout 1800

lint: lint-python lint-rust lint-house ## format, types, contracts, spelling, licences, sizes (-k: all of it)

lint-python: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=python:scripts:examples $(BIN)/mypy scripts/*.py examples/*.py
	$(BIN)/stubtest --concise lrai._native
	PYTHONPATH=python $(BIN)/lint-imports --no-cache

lint-rust:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
	@if command -v cargo-deny > /dev/null; then cargo deny --log-level error check licenses bans sources; \
	else echo "skipped: cargo-deny is not installed (cargo install --locked cargo-deny)"; fi

lint-house: setup
	$(BIN)/typos
	$(BIN)/python scripts/licenses.py --check
	$(BIN)/python scripts/reference.py --check
	$(BIN)/python scripts/loc.py

format: $(VENV)/.tools ## let ruff and rustfmt rewrite the files
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	cargo fmt --all

bench: setup ## measure lrai and its peers; writes benchmarks/results
	$(BIN)/python -m benchmarks

loc: ## code lines by part against their budgets, and the difference to the last commit
	@$(PYTHON) scripts/loc.py

docs: setup ## regenerate docs/reference from the code
	$(BIN)/python scripts/reference.py

licenses: ## regenerate LICENSES-rust.txt from Cargo.lock
	$(PYTHON) scripts/licenses.py

lock: ## resolve every Python package anew, in a fresh environment, into requirements.lock
	rm -rf target/lock && $(PYTHON) -m venv target/lock
	$(PYTHON) scripts/requirements.py bench demo dev test wheel > target/lock/all.txt
	target/lock/bin/pip install -q -r target/lock/all.txt
	target/lock/bin/pip install -q --no-deps rapidocr silero-vad
	{ sed -n '/^#/p' requirements.lock; target/lock/bin/pip freeze; } > target/lock/new
	mv target/lock/new requirements.lock && rm -rf target/lock

wheel: $(VENV)/.demo ## release wheels for x86-64 and aarch64 in dist/
	$(REQUIREMENTS) wheel > $(VENV)/wheel.txt
	$(INSTALL) -r $(VENV)/wheel.txt
	rustup target add aarch64-unknown-linux-gnu
	for arch in x86_64 aarch64; do \
	  PATH="$(abspath $(BIN)):$$PATH" $(BIN)/maturin build --release --locked --zig --out dist \
	    --target $$arch-unknown-linux-gnu --compatibility $(WHEEL_GLIBC); \
	done

clean: ## remove everything that was built
	rm -rf target dist $(VENV) python/lrai/*.so
	find . -name __pycache__ -prune -exec rm -rf {} +
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
