# `make setup` creates .venv and `make abx-env` .venv-abx; every other target sets up by itself what it needs.
PYTHON := .venv/bin/python
export FAIRSEQ2_EXTENSION_TRACE := 1

.PHONY: help setup abx-env demo test lint bench clean

help:
	@echo "make setup   create .venv with pinned packages (a second run takes a second)"
	@echo "make abx-env create .venv-abx for recipes.abx, with fastabx (1.3 GB more to download)"
	@echo "make demo    real speech and audio -> quantizers -> codes -> pre-training -> probes -> demo/report.html"
	@echo "make test    ruff, mypy --strict, pytest"
	@echo "make bench   benchmarks against lhotse, multi-quantization, AdamW and plain training"

setup:
	@./setup.sh

abx-env: setup
	@./setup.sh abx

demo: setup
	$(PYTHON) -m recipes.demo demo

lint: setup
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy

# Spread over the cores, and one process more: there is always a test that waits for Slurm rather than compute.
test: lint
	$(PYTHON) -m pytest -n $$(($$(nproc) + 1)) --maxprocesses 8 --dist worksteal

bench: setup
	$(PYTHON) -m benchmarks.mvq_encode
	$(PYTHON) -m benchmarks.fbank
	$(PYTHON) -m benchmarks.data_pipeline
	$(PYTHON) -m benchmarks.scaled_adam
	$(PYTHON) -m benchmarks.regularization
	$(PYTHON) -m benchmarks.train_step

clean:
	rm -rf .venv .venv-abx demo build *.egg-info .mypy_cache .pytest_cache .ruff_cache
