# `make setup` creates .venv, `make abx-env` .venv-abx, `make checkers-env` .venv-checkers; other targets set up what they need.
PYTHON := .venv/bin/python
export FAIRSEQ2_EXTENSION_TRACE := 1

.PHONY: help setup abx-env checkers-env demo test lint bench clean

help:
	@echo "make setup   create .venv with pinned packages (a second run takes a second)"
	@echo "make abx-env create .venv-abx for recipes.abx, with fastabx (1.3 GB more to download)"
	@echo "make checkers-env  create .venv-checkers with the checkers of HEAR, X-ARES and s3prl (0.4 GB more to download)"
	@echo "make demo    real speech and audio -> quantizers -> codes -> pre-training -> probes -> demo/report.html"
	@echo "make test    ruff, mypy --strict, pytest"
	@echo "make bench   benchmarks against lhotse, multi-quantization, AdamW and plain training"

setup:
	@./setup.sh

abx-env: setup
	@./setup.sh abx

checkers-env: setup
	@./setup.sh checkers

demo: setup
	$(PYTHON) -m recipes.demo demo

lint: setup
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy

# Spread over the cores, and one process more: there is always a test that waits for Slurm rather than compute.
test: lint
	$(PYTHON) -m pytest -n $$(($$(nproc) + 1)) --maxprocesses 8 --dist worksteal --durations 15

bench: setup
	$(PYTHON) -m benchmarks.mvq_encode
	$(PYTHON) -m benchmarks.fbank
	$(PYTHON) -m benchmarks.data_pipeline
	$(PYTHON) -m benchmarks.scaled_adam
	$(PYTHON) -m benchmarks.regularization
	$(PYTHON) -m benchmarks.train_step

clean:
	rm -rf .venv .venv-abx .venv-checkers demo build *.egg-info .mypy_cache .pytest_cache .ruff_cache
