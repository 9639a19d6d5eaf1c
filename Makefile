# Every target sets up what it needs by itself: an environment in .venv, nothing outside this folder.
#
#     make demo               train, tune and test on real data, in under a minute
#     make test               lint, then the tests
#     make chaos              seeded faults on nodes of their own; CHAOS_FLAGS='--seeds 17' runs one alone
#     make PYTHON=python3.12  the interpreter that a new .venv is made from (3.11 or later)
#
# .venv is made once, and brought up to date only after pyproject.toml or constraints.txt has changed. An active
# environment of your own is left alone. Written for GNU make 3.81 (macOS) and later.

PYTHON ?= python3
# What pytest is given besides what pyproject.toml says: make test PYTEST_FLAGS='-k digits'
PYTEST_FLAGS ?=
# What the campaign of faults is given: make chaos CHAOS_FLAGS='--seeds 17'
CHAOS_FLAGS ?=

VENV := .venv
RUN := $(VENV)/bin/python
DEV := $(VENV)/.installed-dev
ALL := $(VENV)/.installed-all
DOCS := $(VENV)/.installed-docs

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all lint bench bench-gpu chaos docs clean

help:
	@echo 'make demo      train digits on two Ray workers, tune in a sweep, test the best (examples/digits.py)'
	@echo 'make test      lint, then the tests'
	@echo 'make test-all  the same, and the tests that take long or need extra packages'
	@echo 'make lint      ruff and mypy'
	@echo 'make chaos     100 schedules of faults on nodes in network namespaces (Linux, root)'
	@echo 'make bench     time everything beside its peers, into benchmarks/results/ and the README'
	@echo 'make bench-gpu train a GPT of 124 M parameters beside the plain loop (needs a CUDA device)'
	@echo 'make docs      build the documentation as a site into build/site, with warnings as errors'
	@echo 'make clean     remove caches and build outputs; keeps .venv and runs/'

demo: $(DEV)
	$(RUN) examples/digits.py

test: lint
	$(RUN) -m pytest -n 2 --no-loadscope-reorder $(PYTEST_FLAGS)

test-all: $(ALL) lint
	$(RUN) -m pytest -m '' $(PYTEST_FLAGS)

lint: $(DEV)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

chaos: $(DEV)
	$(RUN) -m tests.chaos.campaign $(CHAOS_FLAGS)

bench: $(DEV)
	$(RUN) benchmarks/step.py --json benchmarks/results/step.json
	$(RUN) benchmarks/data.py --json benchmarks/results/data.json
	$(RUN) benchmarks/checkpoint.py --json benchmarks/results/checkpoint.json
	$(RUN) benchmarks/ddp.py --json benchmarks/results/ddp.json
	$(RUN) benchmarks/recovery.py --json benchmarks/results/recovery.json
	$(RUN) benchmarks/elastic.py --json benchmarks/results/elastic.json
	$(RUN) benchmarks/resizing.py --json benchmarks/results/resizing.json
	$(RUN) benchmarks/sweep.py --json benchmarks/results/sweep.json
	$(RUN) benchmarks/sweep.py --many --json benchmarks/results/sweep-many.json
	$(RUN) benchmarks/sweep.py --freed --json benchmarks/results/sweep-freed.json
	$(RUN) benchmarks/sweep.py --memory --json benchmarks/results/sweep-memory.json
	$(RUN) benchmarks/startup.py --torch-trainer --json benchmarks/results/startup.json
	$(RUN) benchmarks/table.py

bench-gpu: $(DEV)
	$(RUN) benchmarks/gpu.py --json benchmarks/results/gpu.json
	$(RUN) benchmarks/table.py

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name $(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp holds the folder it was made in: a checkout that was moved or copied is installed again.
ifneq ($(CURDIR),$(shell cat $(DEV) 2>/dev/null))
.PHONY: $(DEV)
endif
ifneq ($(CURDIR),$(shell cat $(ALL) 2>/dev/null))
.PHONY: $(ALL)
endif
ifneq ($(CURDIR),$(shell cat $(DOCS) 2>/dev/null))
.PHONY: $(DOCS)
endif

$(DEV): EXTRAS = dev,examples
$(ALL): EXTRAS = dev,examples,docs,lightning,mlflow,wandb,comet,neptune,onnx
$(DOCS): EXTRAS = docs
$(DEV) $(ALL) $(DOCS): pyproject.toml constraints.txt | $(RUN)
	$(RUN) -m pip install --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@printf '%s' '$(CURDIR)' > $@

$(RUN):
	@command -v $(PYTHON) >/dev/null || { echo "There is no '$(PYTHON)' here. Name another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or later is needed: '$(PYTHON)' is $$($(PYTHON) -V). Name another: make PYTHON=python3.12"; \
		exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
