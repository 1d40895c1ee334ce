# SPDX-License-Identifier: GPL-2.0-only
#
# Every target sets up what it needs first: git, make and python3 on a Debian 12 are enough to begin with.
# Arguments pass through: make verify ARGS="--specimen naive", make test ARGS="-k nmi".

BIN := .venv/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup setup-tests setup-kernel verify matrix test test-kernel test-all lint format mutants kernel-image bench fuzz crosscheck walks lock clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo '  Arguments: make verify ARGS="--specimen naive"'

setup: ## .venv with the locked versions, and the Debian packages
	@tools/bootstrap

setup-tests:
	@tools/bootstrap --browser

setup-kernel:
	@tools/bootstrap --kernel

matrix: setup ## every variant of the entry in every configuration; goes on where it was stopped
	@$(BIN)/atomicist matrix $(ARGS)

verify: setup ## the main job: our entry closed; a naive one and Debian's kernel for comparison
	@$(if $(ARGS),$(BIN)/atomicist verify $(ARGS),tools/verify-all)

test: setup-tests ## the tests, without those that are slow or need a Linux tree
	@$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow and not kernel" $(ARGS)

test-kernel: setup-kernel ## build (TREE=build/linux), boot and attack a kernel; QUICK=1: only the NMI boundaries
	@TREE="$(TREE)" QUICK="$(QUICK)" $(BIN)/python -m pytest -v --capture=sys -m kernel tests/guest $(ARGS)

test-all: setup-tests setup-kernel ## all tests
	@$(BIN)/python -m pytest $(ARGS)

lint: setup ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

format: setup ## put the Python files into the one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

mutants: setup ## change each instruction of the built entry, and see the checker find it
	@$(BIN)/atomicist mutants $(ARGS)

kernel-image: setup ## fetch Debian's kernel image to build/kernel-image/vmlinuz
	@tools/kernel-image $(ARGS)

bench: setup ## measure
	@$(BIN)/python bench/run.py $(ARGS)

fuzz: setup ## damaged files for every reader, a million; goes on where it stopped; ATHERIS=1: guided by coverage
	@tools/kernel-image
	@$(if $(ATHERIS),$(BIN)/pip install -q 'atheris>=3.0')
	@$(BIN)/python $(if $(ATHERIS),tools/fuzz_coverage.py,tools/fuzz.py) $(ARGS)

crosscheck: setup ## 100,000 states of each instruction form of every image, in every engine; goes on where it stopped
	@tools/kernel-image
	@$(BIN)/atomicist crosscheck --everything --kernel build/kernel-image/vmlinuz --host --states 100000 \
		--reference 100000 --markdown docs/crosscheck.md $(ARGS)

walks: setup ## all schedules of two events and 10,000 deeper, in Unicorn too; goes on where it stopped
	@tools/kernel-image
	@$(BIN)/python tools/walks.py $(ARGS)

lock: setup ## write requirements.lock anew; ARGS=--upgrade for newer versions
	@$(BIN)/python tools/lock.py $(ARGS)

clean: ## remove what was built, but not .venv
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove .venv too
	rm -rf .venv
