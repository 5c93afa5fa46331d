# Crossdock: `make help` lists what can be done here.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo test test-quick lint golden bench docs clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|'

setup: ## install what is missing (system packages, .venv) and leave .venv/bin/crossdock
	@$(PYTHON) scripts/bootstrap.py runtime

demo: setup ## build examples/hello for six platforms, push it to a loopback registry, run each one
	@$(BIN)/python scripts/demo.py

test: setup-test lint ## lint, then the whole suite as root (when root) and as an ordinary user
	@$(BIN)/python scripts/runtests.py

test-quick: setup-test ## the unit tests only, as whoever you are
	@$(BIN)/pytest -q -n 2 tests/unit

lint: setup-test ## ruff, mypy --strict, the layering contract
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

golden: setup-test ## rewrite the golden files from what the code does now (look at the diff)
	@GOLDEN=write $(BIN)/pytest -q -p no:randomly -n 0 -m golden tests

bench: setup-bench ## compare with the peers on PATH; writes bench/README.md's table
	@$(BIN)/python bench/run.py

docs: setup ## make the generated pages of docs/ from the code
	@$(BIN)/python scripts/makedocs.py

clean: ## remove .venv and caches of tools (not the store, not the developer cache)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.PHONY: setup-test setup-bench
setup-test:
	@$(PYTHON) scripts/bootstrap.py test
setup-bench:
	@$(PYTHON) scripts/bootstrap.py bench
