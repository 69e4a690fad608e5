# make reproduce [PROFILE=pocket] [NOTEBOOKS="01_method 08_few_shot"] [JOBS=2]      make test
# JOBS: cores to use, all that the process may use if empty. Of a profile that computes on a GPU, the Snakefile runs one job a GPU, whatever JOBS is.
PROFILE   ?= pocket
NOTEBOOKS ?=
JOBS      ?=
# The newest of the Pythons that the lock serves; one that is named but does not start is passed over.
ifndef PYTHON
PYTHON := $(shell for p in python3.13 python3.12 python3.11; do "$$p" -c "" 2>/dev/null && { echo "$$p"; exit; }; done; echo python3)
endif
# Not the scripts beside it: in a folder with a blank in its name some have a first line that does not work.
PY        := .venv/bin/python
# Recipes read these from their environment, so that neither make nor the shell looks into what was typed.
override PROFILE := $(value PROFILE)
override NOTEBOOKS := $(value NOTEBOOKS)
override JOBS := $(value JOBS)
override PYTHON := $(value PYTHON)
# One thread a process, so that runs repeat bit for bit; no network unless asked for (paper profile: HF_HUB_OFFLINE=0).
OMP_NUM_THREADS ?= 1
HF_HUB_OFFLINE  ?= 1
override OMP_NUM_THREADS := $(value OMP_NUM_THREADS)
override HF_HUB_OFFLINE := $(value HF_HUB_OFFLINE)
# TORCH=cpu: PyTorch's own build for processors alone, without CUDA's libraries (macOS has no other).
override TORCH := $(value TORCH)
PINS  := cat requirements.lock
INDEX :=
ifeq ($(TORCH)-$(shell uname -s),cpu-Linux)
PINS  := grep -Ev '^(nvidia|cuda|triton)' requirements.lock | sed -E 's/^(torch|torchvision)==[^ ]+/&+cpu/'
INDEX := --extra-index-url https://download.pytorch.org/whl/cpu
endif
export PROFILE NOTEBOOKS JOBS PYTHON TORCH OMP_NUM_THREADS HF_HUB_OFFLINE

.PHONY: help setup reproduce test test-all test-fast test-faults test-lab test-lock gpu-check lint docs notebooks paper clean lock reference
help:
	@echo "make reproduce [PROFILE=pocket] [NOTEBOOKS=\"01_method 08_few_shot\"] [JOBS=2] | test | test-all | test-fast | lint | notebooks | docs | paper | clean"
	@echo "make setup TORCH=cpu: set up without CUDA's libraries"
	@echo "make gpu-check: measure and judge a GPU before a reproduction on it; under ten minutes"

setup: .venv/.ready
	@[ -z "$$TORCH" ] || [ "$$TORCH" = "$$(cat .venv/.ready)" ] || { echo ".venv was set up without TORCH=$$TORCH; delete it, then say make setup TORCH=$$TORCH" >&2; exit 2; }
.venv/.ready: requirements.lock pyproject.toml
	@case "$$TORCH" in "" | cpu) ;; *) echo "TORCH=$$TORCH: say TORCH=cpu for a build without CUDA, or nothing" >&2; exit 2;; esac
	@"$$PYTHON" -c "import sys; (3, 11, 5) <= sys.version_info[:3] < (3, 14) or sys.exit('Python 3.11 (from 3.11.5 on), 3.12 or 3.13 is needed, ' + sys.executable + ' is ' + sys.version.split()[0] + '; say make PYTHON=/path/to/python3.13')"
	"$$PYTHON" -m venv $$("$$PYTHON" -c "import os, sys; os.path.isdir('.venv/lib/python%d.%d' % sys.version_info[:2]) or print('--clear')") .venv
	$(PINS) | $(PY) -m pip install --quiet --no-deps $(INDEX) --requirement /dev/stdin
	$(PY) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@printf %s "$$TORCH" > $@

reproduce: setup
	@$(PY) -m blocklora_lib.cli reproduce --profile="$$PROFILE" --notebooks="$$NOTEBOOKS" --jobs="$${JOBS:-0}"

test: setup
	$(PY) -m pytest -n 2 --dist worksteal -m "not rare and not network and not faults and not lab"

test-all: setup
	$(PY) -m pytest -n 2 --dist worksteal

test-fast: setup
	$(PY) -m pytest -n 2 --dist worksteal -m "not slow and not network and not faults and not lab"

# JupyterLab on this machine, in a headless Chromium: a minute of a core, more than `make test` has room for.
test-lab: setup
	$(PY) -m pytest -m lab tests/suite/test_jupyterlab.py

# A thousand kills, 500 damaged files of each kind that is read: half an hour of a core.
test-faults: setup
	$(PY) -m pytest -m faults

# For maintainers, with a network: does an index have a file of every pin for each Python?
test-lock: setup
	$(PY) -m pytest -m network

gpu-check: setup
	$(PY) benchmarks/gpu_check.py

lint: setup
	$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m nbstripout --keep-id --verify notebooks/*.ipynb && $(PY) -m mypy

docs: setup
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

# The reproduction report of a results folder, by default the reference run's, as build/paper/report.pdf. Needs LaTeX (see docs/results.md).
RESULTS ?= results/reference/pocket-full
override RESULTS := $(value RESULTS)
export RESULTS
paper: setup
	@command -v latexmk >/dev/null && command -v pdflatex >/dev/null || { echo "error: make paper needs latexmk and pdflatex; docs/results.md names the packages" >&2; exit 2; }
	@$(PY) -m blocklora_lib.cli paper "$$RESULTS" build/paper
	@cd build/paper && latexmk -pdf -silent -interaction=nonstopmode -halt-on-error report.tex && echo build/paper/report.pdf

notebooks: setup
	$(PY) -m jupyter lab notebooks

# A folder of results/ is named by a profile's name: never by a path, which could lead elsewhere.
NAMED = case "$$PROFILE" in ''|.*|-*|reference|*/*|*.yaml|*.yml) \
	echo "error: PROFILE=$$PROFILE names no folder of results/; give the profile's name, as in its file" >&2; exit 2;; esac

clean:
	@$(NAMED)
	rm -rf "results/$$PROFILE" .snakemake build *.egg-info .pytest_cache .ruff_cache .hypothesis

# For maintainers: pin again what pyproject.toml asks for; keep a run as the reference (of pocket-full, what README.md and docs/ show).
lock:
	"$$PYTHON" -m venv --clear build/lock && build/lock/bin/python -m pip install --quiet '.[suite,test,docs,cluster]' 'setuptools>=77' && build/lock/bin/python -m pip freeze --all --exclude pip --exclude blocklora | sed -E 's/^((nvidia|cuda|triton)[^;]*)$$/\1 ; sys_platform == "linux"/' > requirements.lock

reference: setup
	@$(NAMED)
	@$(PY) -m blocklora_lib.cli reference --profile="$$PROFILE"
