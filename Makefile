# One door to everything. `make` alone lists the targets. Needs python3 (3.11 or 3.12) with venv, and make; nothing else.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PEERS  := orthanc dcmtk dicom3tools libpixelmed-java default-jdk-headless invesalius-examples mricron-data gcc libc6-dev openssl poppler-utils plastimatch fonts-droid-fallback \
  chromium orthanc-dicomweb $(if $(shell command -v npm),,nodejs npm)
# Further arguments for pytest: PYTEST='-k delivery'; PYTEST='-n0 --pdb' for one process and a debugger.
PYTEST ?=
# A further index for torch: PyTorch's own, https://download.pytorch.org/whl/cpu, has builds without CUDA, a tenth of the size.
TORCH_INDEX ?=

PIP   := $(BIN)/python -m pip --disable-pip-version-check
# pip in words: what it fetches, and that it builds and installs.
WORDS := sed -unE 's/^ *Downloading ([^ ]*\/)?([^/ ]+) \((.*)\)/  fetching \2 (\3)/p; s/^Processing (.*\/)?([^/]+\.whl)$$/  taking \2/p; \
  s/^ *Building (wheel|editable) for ([^ ]+).*: started/  building \2/p; s/^Installing collected packages.*/  installing/p'

.DEFAULT_GOAL := help
.PHONY: explore help setup fmt lint type test unit check peers bench bench-listener soak docs demo constraints clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

setup: $(STAMP)  ## make .venv with radnode and the developers' tools

# The stamp is older than pyproject.toml or constraints.txt when they changed: then pip runs again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' || \
	  { echo 'radnode needs Python 3.11 or later → make PYTHON=/path/to/python3.12 setup'; exit 2; }
	@test -x $(BIN)/python || { echo 'setup 1/3: making $(VENV)'; $(PYTHON) -m venv $(VENV) || \
	  { echo 'no venv module → apt-get install python3-venv'; exit 2; }; }
	@echo 'setup 2/3: fetching and installing torch and the other libraries (some minutes the first time)'
	@$(PIP) install --progress-bar off -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch | $(WORDS)
	@$(PIP) install --progress-bar off -c constraints.txt -e '.[dev]' | $(WORDS)
	@$(BIN)/radnode --version >/dev/null
	@touch $(STAMP)
	@echo 'setup 3/3: done, $(BIN)/radnode is there'

fmt: $(STAMP)  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only .

lint: $(STAMP)  ## ruff, layers, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell

type: $(STAMP)  ## mypy --strict
	$(BIN)/mypy

test: $(STAMP) peers lint type  ## everything: Debian peers (when root), lint, types, all tests
	$(BIN)/pytest -n auto $(PYTEST)

unit: $(STAMP)  ## the fast tests only
	$(BIN)/pytest tests/unit tests/house $(PYTEST)

explore: $(STAMP)  ## the property tests with random examples, which `make test` leaves as they are
	HYPOTHESIS_PROFILE=explore $(BIN)/pytest -n auto $$(grep -rl hypothesis tests --include='test_*.py') $(PYTEST)

check: lint type unit  ## before a commit: lint, types, fast tests

peers:  ## install the Debian programs that tests talk to (root only)
	@sh scripts/install-packages.sh $(PEERS)

bench: $(STAMP)  ## measure: seconds per stage on real studies
	$(BIN)/python -m benchmarks $(BENCH)

bench-listener: $(STAMP)  ## measure: receiving beside storescp, Orthanc, pynetdicom; BENCH="--rounds 5 --trials ct500"
	$(BIN)/python -m benchmarks --only listener $(or $(BENCH),--rounds 5)

soak: $(STAMP)  ## kill processes at random under load, count what the promises say: MINUTES=10 SOAK=--seed=1
	$(BIN)/python -m benchmarks.soak --minutes $(or $(MINUTES),10) $(SOAK)

docs: $(STAMP)  ## write the generated reference pages
	$(BIN)/python scripts/write_docs.py

demo: $(STAMP)  ## from C-STORE to SEG and SR on a real study; DEMO="--study head" or DEMO="--study DIR" for another
	@$(if $(findstring --study head,$(DEMO)),sh scripts/install-packages.sh invesalius-examples || true,true)
	@$(BIN)/radnode demo $(DEMO)

constraints: $(STAMP)  ## write down the versions that are installed now
	@{ echo '# Every version that the tests ran with; `pip install -c constraints.txt`. Written by `make constraints`.'; \
	  $(BIN)/python -m pip freeze --all --exclude-editable | grep -viE '^(pip|setuptools|wheel)==| @ ' | sed 's/+.*//' | sort -f; } > constraints.txt
	@touch $(STAMP)

clean:  ## remove what was built; the journal and results of a node are never touched
	rm -rf build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf $(VENV) .cache
