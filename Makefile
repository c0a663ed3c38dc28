PYTHON ?= python3
export BASE ?= origin/main
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# See src/opam/__init__.py; here for the stages that load torch first.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help repro repro-all results pull changes test bench ablation lint stages preset figures
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	@echo 'Installing into .venv: some minutes, once'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --require-hashes -r requirements.lock
	.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

repro: .venv/.installed ## run the whole pipeline, or go on with it, and print the results
	python -m opam.app.check_params
	python -m opam.app.mend
	dvc repro export_bundle draw_examples doubt_labels
	python -m opam.report.summary
	@echo 'The other systems beside OPAM, and a report to look through: make repro-all'

repro-all: .venv/.installed ## the same, and all other systems, the comparison and the report
	python -m opam.app.check_params
	python -m opam.app.mend
	dvc repro
	python -m opam.report.summary

results: .venv/.installed ## write docs/results.md from what `make repro-all` made
	python -m opam.report.results

pull: .venv/.installed ## restore every artifact from the team's remote, run nothing
	python -m opam.app.restore

changes: .venv/.installed ## BASE=origin/main: metrics and parameters that differ from it, into report.md
	printf '## Metrics\n\n' > report.md
	dvc metrics diff --all --precision 4 --md "$$BASE" >> report.md
	printf '\n## Parameters\n\n' >> report.md
	dvc params diff --targets params.yaml --md "$$BASE" >> report.md
	@echo 'report.md is written'

test: .venv/.installed ## lint, types and all tests
	ruff format --check .
	ruff check .
	mypy
	pytest -n 2 --dist loadfile --no-loadscope-reorder

bench: .venv/.installed ## measure speed, memory and the team's cache; half an hour
	python benchmarks/bench.py

lint: .venv/.installed ## format and fix what can be fixed
	ruff format .
	ruff check --fix .

ablation: .venv/.installed ## what each step is worth, over three seeds; hours
	python benchmarks/ablation.py

preset: .venv/.installed ## NAME=cub-small-cpu: lay presets/NAME.yaml over the defaults, into params.yaml
	python -m opam.app.preset $(NAME)

stages: .venv/.installed ## draw the graph of stages, docs/stages.md
	dvc dag --md --collapse-foreach-matrix > docs/stages.md

figures: .venv/.installed ## draw the sheet of samples in docs/photographs.md
	python -m opam.report.sample_sheet docs/synthetic_birds.jpg
