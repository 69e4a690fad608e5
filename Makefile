# make reproduce [PROFILE=pocket] [NOTEBOOKS="01_method 05_few_shot"] [JOBS=2]      make test
# JOBS: cores to use. Of a profile that computes on a GPU, the Snakefile runs one job a GPU, whatever JOBS is.
PROFILE   ?= pocket
NOTEBOOKS ?=
JOBS      ?= $(shell getconf _NPROCESSORS_ONLN)
PYTHON    ?= $(shell command -v python3.11 || command -v python3)
BIN       := .venv/bin
README_PROFILE := pocket-full# whose reference run README.md shows: its key figure and its claims
# One thread a process, so that runs repeat bit for bit; no network unless asked for (paper profile: HF_HUB_OFFLINE=0).
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE  ?= 1

.PHONY: help setup reproduce test lint notebooks clean lock reference
help:
	@echo "make reproduce [PROFILE=pocket] [NOTEBOOKS=\"01_method 05_few_shot\"] [JOBS=2] | test | lint | notebooks | clean"

setup: .venv/.ready
.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c "import sys; sys.version_info[:2] == (3, 11) or sys.exit('Python 3.11 is needed, ' + sys.executable + ' is ' + sys.version.split()[0] + '; say make PYTHON=/path/to/python3.11')"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-deps --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

reproduce: setup
	@$(BIN)/snakemake --cores $(JOBS) --keep-going --rerun-incomplete --nolock --quiet host --config quiet=1 profile=$(PROFILE) 'notebooks=$(NOTEBOOKS)' && echo "done: open results/$(PROFILE)/report.html"

test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: setup
	$(BIN)/ruff check . && $(BIN)/nbstripout --keep-id --verify notebooks/*.ipynb

notebooks: setup
	$(BIN)/jupyter lab notebooks

clean:
	rm -rf results/$(PROFILE) .snakemake build *.egg-info .pytest_cache .ruff_cache .hypothesis

# For maintainers: pin again what pyproject.toml asks for; keep a run as the reference, one of them for README.md.
lock:
	$(PYTHON) -m venv --clear build/lock && build/lock/bin/pip install --quiet '.[test,cluster]' 'setuptools>=77' && build/lock/bin/pip freeze --all --exclude pip --exclude blocklora | sed -E 's/^((nvidia|cuda|triton)[^;]*)$$/\1 ; sys_platform == "linux"/' > requirements.lock

reference: setup
	ls -d $(addprefix results/$(PROFILE)/,runs figures tables) >/dev/null
	rm -rf results/reference/$(PROFILE) && mkdir -p results/reference/$(PROFILE) && cp -r $(addprefix results/$(PROFILE)/,runs figures tables) results/reference/$(PROFILE)/
	[ $(PROFILE) != $(README_PROFILE) ] || { mkdir -p docs && cp results/$(PROFILE)/figures/00_overview/key_figure.png docs/few_shot.png && $(BIN)/blocklora claims --profile $(PROFILE) --results results/reference/$(PROFILE) --into README.md; }
