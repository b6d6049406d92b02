# Each target sets up what it needs; a second call re-installs nothing.
VENV   ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
ARGS   ?=
JOBS   ?= 2
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long test-gpu test-faults benchmark-gpu lint format docs clean

help:  ## list the targets
	@echo "Usage: make TARGET [PYTHON=python3.11] [ARGS='...']"
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | \
	    awk -F '\t' '{printf "  %-13s %s\n", $$1, $$2}'

setup: $(STAMP)  ## create the virtual environment and install the pinned packages

$(STAMP): requirements/pins.txt setup.cfg pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { \
	    echo "No Python found at '$(PYTHON)': install Python 3.11 (Debian: apt-get install" \
	        "python3.11 python3.11-venv), or name one: make PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || { \
	    echo "$(PYTHON) is $$("$(PYTHON)" -V 2>&1), but requirements/pins.txt is for Python" \
	        "3.11 and 3.12. Name one (make PYTHON=python3.11), or install without pins:" \
	        "pip install mmcv-lite==2.1.0 -e '.[dev]'" >&2; exit 1; }
	@echo "Creating the virtual environment $(VENV) with $$("$(PYTHON)" -V)"
	@"$(PYTHON)" -m venv "$(VENV)"
	@echo "Installing pinned packages into $(VENV) (about 1.7 GB, a minute or two)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements/pins.txt
	@echo "Installing mmaction_mbcd itself (editable)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps \
	    --no-build-isolation -e .
	@echo "Checking the installation"
	@error=$$($(BIN)/python -c 'import cv2' 2>&1) || { \
	    echo "OpenCV cannot be imported: $$(echo "$$error" | tail -n 1)" >&2; \
	    echo "It links two system libraries that bare machines lack. Install them and" \
	        "call make again:" >&2; \
	    echo "    Debian, Ubuntu:  apt-get install libgl1 libglib2.0-0" >&2; \
	    echo "    Fedora, RHEL:    dnf install mesa-libGL glib2" >&2; exit 1; }
	@$(BIN)/python -c 'from mmaction_mbcd import compat'
	@touch $@
	@echo "Set-up complete: $(VENV)"

demo: $(STAMP)  ## train and compare the methods on synthetic data (ARGS: tools/demo.py --help)
	@$(BIN)/python tools/demo.py $(ARGS)

# Two processes with two OpenMP threads each on two cores take many times longer.
test test-long test-gpu test-faults: export OMP_NUM_THREADS ?= 1

# Measuring takes a third of the time on top; .ci/run does it.
COVER := --cov --cov-report=term --cov-fail-under=95

test: $(STAMP)  ## run the tests, JOBS at a time (COVERAGE=1: fails under 95 %; ARGS: pytest's)
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder \
	    $(if $(COVERAGE),$(COVER)) $(ARGS)

test-long: $(STAMP)  ## run the tests that take minutes
	@$(BIN)/python -m pytest -m long $(ARGS)

test-gpu: $(STAMP)  ## run the tests that need a GPU, on the first one
	@$(BIN)/python -c 'import sys, torch; torch.cuda.is_available() or sys.exit( \
	    "test-gpu: torch finds no GPU here")'
	@MBCD_TEST_GPU=1 $(BIN)/python -m pytest -m gpu $(ARGS)

test-faults: $(STAMP)  ## run all tests of damage, kills and hostile input (half an hour at most)
	@$(BIN)/python -m pytest -m "long or not long" tests/faults tests/test_checkpoint_files.py \
	    tests/test_engine/test_trust.py tests/test_datasets/test_trust.py $(ARGS)

# On a machine without a GPU: make benchmark-gpu DEVICE=cpu SIZE=small STEPS=2 PAIRS=1
DEVICE ?= cuda
SIZE   ?= paper
STEPS  ?= 20
PAIRS  ?= 5
TO     ?= benchmark
MEASURE = $(BIN)/python tools/benchmark
OFTEN   = --device $(DEVICE) --size $(SIZE)

benchmark-gpu: $(STAMP)  ## measure steps, epochs and reading into TO/*.json (docs/performance.md)
	@mkdir -p "$(TO)"
	$(MEASURE)/step.py $(OFTEN) --pairs $(PAIRS) --steps $(STEPS) --profile --json "$(TO)/step.json"
	$(MEASURE)/step.py mbcd $(OFTEN) --pairs $(PAIRS) --steps $(STEPS) --json "$(TO)/cudnn.json" \
	    --change env_cfg.cudnn_benchmark=True
	$(MEASURE)/epoch.py $(OFTEN) --random --steps $(STEPS) --processes 1 --json "$(TO)/epoch.json" \
	    --project 8 200 --project 32 25
	$(MEASURE)/epoch.py $(OFTEN) --steps $(STEPS) --frame-store jpeg --json "$(TO)/epoch_jpeg.json"
	$(MEASURE)/pipeline.py --pairs $(PAIRS) --workers $$(nproc) --json "$(TO)/pipeline.json"
ifeq ($(DEVICE),cuda)
	$(MEASURE)/epoch.py $(OFTEN) --steps $(STEPS) --json "$(TO)/epoch_files.json"
	$(MEASURE)/epoch.py $(OFTEN) --steps $(STEPS) --frame-store pnm --json "$(TO)/epoch_pnm.json"
	$(MEASURE)/epoch.py $(OFTEN) --steps $(STEPS) --frame-store pnm --json "$(TO)/pageable.json" \
	    --cfg-options train_dataloader.pin_memory=False
	$(MEASURE)/step.py mbcd $(OFTEN) --pairs $(PAIRS) --steps $(STEPS) --json "$(TO)/adam.json" \
	    --change optim_wrapper.optimizer.fused=True
	$(MEASURE)/step.py mbcd $(OFTEN) --pairs $(PAIRS) --steps $(STEPS) --json "$(TO)/layout.json" \
	    --change model.channels_last=True
	$(MEASURE)/epoch.py $(OFTEN) --random --steps $(STEPS) --amp --json "$(TO)/float16.json"
	$(MEASURE)/epoch.py $(OFTEN) --random --steps $(STEPS) --amp bfloat16 --json "$(TO)/bfloat16.json"
	$(MEASURE)/epoch.py $(OFTEN) --random --steps $(STEPS) --amp bfloat16 \
	    --json "$(TO)/bfloat16_layout.json" --cfg-options model.channels_last=True
endif

lint: $(STAMP)  ## check style and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(STAMP)  ## repair style and format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(VENV)/.docs  ## build docs/ and the API reference into docs/_build/html
	@$(BIN)/python -m sphinx -q -W --keep-going -d docs/_build/doctrees docs docs/_build/html $(ARGS)
	@echo "docs/_build/html/index.html"

$(VENV)/.docs: $(STAMP) requirements/docs.txt
	@echo "Installing what builds the documentation into $(VENV)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements/docs.txt
	@touch $@

clean:  ## remove the environment, caches and reports (not work_dirs, not data)
	rm -rf "$(VENV)" *.egg-info build dist .pytest_cache .ruff_cache .hypothesis htmlcov
	rm -rf docs/_build docs/api
	rm -f .coverage .coverage.* coverage.xml
	find mmaction_mbcd tests tools configs -name __pycache__ -type d -prune -exec rm -rf {} +
