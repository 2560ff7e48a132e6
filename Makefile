# Start with `make demo` and `make test`; `make help` lists the rest.
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
PYTHON3 ?= $(shell command -v python3.11 || command -v python3)
export DVC_NO_ANALYTICS := 1
# With PYTHONDONTWRITEBYTECODE set, each of the many processes of a pipeline or test run would recompile all code.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-all test-bench fuzz attack browse play run bakeoff server schedule params docs lint bench bench-scale constraints clean-venv

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(VENV)/.installed  ## set up, run the whole pipeline over the embedded corpus, print the scores
	@$(BIN)/python -m flows.run

test: $(VENV)/.test  ## set up and run the quick tests, before every commit
	@$(check)
	@$(pytest) -m "not slow"

test-all: $(VENV)/.test  ## set up and run the quick and the slow tests: kills, sweeps, bake-offs, Dask, Chromium, whole trainings
	@$(check)
	@$(pytest)

test-bench: $(VENV)/.bench  ## run the tests of the benchmarks, and of what is recorded of the originals of our networks
	@$(pytest) tests/bench

fuzz: $(VENV)/.test  ## damage manifests and audio files at random (about an hour)
	@HYPOTHESIS_PROFILE=long $(BIN)/pytest tests/corpora/test_fuzz.py tests/decoding/test_containers.py -k damage

attack: $(VENV)/.test  ## random kills, every fault of a disk, hostile files, 64 runs at once, killed machines and servers (hours)
	@OMP_NUM_THREADS=1 $(BIN)/pytest -s -m attack

browse: $(VENV)/.installed  ## open the experiment browser on http://127.0.0.1:5000
	@$(BIN)/soundmill browse

play: $(VENV)/.installed  ## play with the models on http://127.0.0.1:7860: make, change, compare, keep sounds
	@$(BIN)/soundmill play

run: $(VENV)/.installed  ## the pipeline over your own recordings, or another model: make run CORPUS=DIR MODEL=tango (MINUTES=30 EXPERIMENT=NAME)
	@$(BIN)/soundmill run $${CORPUS:+"$$CORPUS"} $${EXPERIMENT:+"experiment=$$EXPERIMENT"} $${MODEL:+--model "$$MODEL"} \
		$${MINUTES:+--minutes "$$MINUTES"}

bakeoff: $(VENV)/.installed  ## which model is best for your sounds: make bakeoff CORPUS=DIR MINUTES=20 (FAMILIES=a,b SEEDS=0,1 EXTRA=name=DIR PLAN=NAME)
	@$(BIN)/soundmill bakeoff $${CORPUS:+"$$CORPUS"} $${MINUTES:+--minutes "$$MINUTES"} $${FAMILIES:+--families "$$FAMILIES"} \
		$${SEEDS:+--seeds "$$SEEDS"} $${EXTRA:+--extra "$$EXTRA"} $${PLAN:+--plan "$$PLAN"}
export CORPUS EXPERIMENT MODEL MINUTES FAMILIES SEEDS EXTRA PLAN

server: $(VENV)/.installed  ## a Prefect server on http://127.0.0.1:4200
	@$(BIN)/python -m flows.server

schedule: $(VENV)/.installed  ## run the pipeline every night (needs `make server`)
	@$(BIN)/python -m flows.serve

params: $(VENV)/.installed  ## compose params.yaml from conf/
	@$(BIN)/soundmill params

docs: $(VENV)/.test  ## fill in the generated tables of docs/architecture.md and docs/licences.md
	@$(BIN)/python -m tests.docs_tables

lint: $(VENV)/.test  ## format and check the code
	@$(BIN)/ruff format soundmill stages flows bench tests
	@$(BIN)/ruff check --fix soundmill stages flows bench tests

bench: $(VENV)/.bench  ## compare with other tools; results in data/bench
	@$(BIN)/python -m bench

bench-scale: $(VENV)/.bench  ## measure 50,000 clips and the cost of adding 1 % (two hours)
	@$(BIN)/python -m bench.scale
	@$(BIN)/python -m bench.incremental --clips 20000
	@$(BIN)/python -m bench.incremental --clips 20000 --form youtube
	@$(BIN)/python -m bench.picture

check = $(BIN)/ruff check soundmill stages flows bench tests && $(BIN)/ruff format --check -q soundmill stages flows bench tests
pytest = OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --maxprocesses 4 --dist worksteal
comma := ,
# Everything is pinned by constraints.txt; the stamps make a second call instant. uv needs a fifth of pip's time; if it cannot be
# installed, or cannot reach the index that pip is configured for, pip installs everything.
install = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv \
	&& $(BIN)/uv pip install --python $(BIN)/python -c constraints.txt -e '.$(1)' \
	|| $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.$(1)'

$(VENV)/.test: $(VENV)/.installed
	@$(call install,[test$(comma)export])
	@touch $@

# The competitors in the benchmarks, and the originals of our networks, are not dependencies of the project.
$(VENV)/.bench: $(VENV)/.test
	@$(call install,[bench])
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python -c constraints.txt \
		nn_tilde cached-conv audiobox_aesthetics hear21passt julius kadtk msclap torchopenl3
	@# It has a package `tests`, which would hide ours.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade -c constraints.txt \
		--target $(VENV)/oracles laion_clap
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON3)" || { echo 'Soundmill needs Python 3.11 or 3.12: apt-get install python3 python3-venv' >&2; exit 1; }
	@$(PYTHON3) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
		{ echo 'Soundmill needs Python 3.11 or 3.12; set PYTHON3=/path/to/python3.11' >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON3) -m venv $(VENV) || \
		{ echo 'could not create $(VENV): on Debian, apt-get install python3-venv' >&2; exit 1; }
	@echo 'Installing into $(VENV) (a minute or two the first time) …'
	@$(call install,)
	@touch $@

constraints: $(VENV)/.bench  ## pin the installed versions
	@{ $(BIN)/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools \
		&& $(BIN)/python -m pip freeze --path $(VENV)/oracles; } > $(VENV)/freeze.txt
	@grep '==' $(VENV)/freeze.txt | sort -fu > $(VENV)/constraints.txt
	@test -s $(VENV)/constraints.txt && mv $(VENV)/constraints.txt constraints.txt

clean-venv:  ## remove the environment
	rm -rf $(VENV)
