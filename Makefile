# One file for people and for CI: `make help` lists the targets.
# A fresh machine needs Python 3.11 or newer (with venv) and make; everything else is installed into .venv, pinned by
# constraints.txt. A second run is quick: the stamp is older only when pyproject.toml or constraints.txt changed.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# `play` is not among them: pynput needs evdev, which has no wheel and so needs a C compiler and kernel headers. It is
# tried afterwards; without it the tests of the desktop client are skipped by name.
EXTRAS ?= envs,train,serve,control,text,laws,trace
PIP_VERSION := 26.3
# More arguments for pip, for example --extra-index-url https://download.pytorch.org/whl/cpu for the small torch.
PIP_ARGS ?=
# More arguments for pytest, for example PYTEST_ARGS='-k slots -x', or PYTEST_ARGS='-n 0' for one process.
PYTEST_ARGS ?=
# More arguments for every benchmark, for example BENCH_ARGS='--rounds 3'.
BENCH_ARGS ?=
DEMO_OUT ?= runs/demo
DEMO_DOOM_OUT ?= runs/demo-doom
DOOM_OUT ?= runs/doom
DEMO_WORLD_OUT ?= runs/demo-world
# A folder that `playserve train` left, of a world; empty: the one that the package carries.
WORLD_CHECKPOINT ?=
BENCH_OUT ?= runs/bench
# `make gpu` runs on bare machines: it takes the interpreter that has torch, and makes no environment.
GPU_PYTHON ?= $(if $(wildcard $(STAMP)),$(BIN)/python,python3)
# What such a machine is known to lack.
GPU_WHEELS ?= googleapis-common-protos
SOURCE_ROOTS := proto client trainer services

.DEFAULT_GOAL := help
.PHONY: help install demo demo-doom demo-world doom test lint types fix gen baseline bench fuzz audit gpu gpu-wheels system-deps constraints clean distclean

help: ## Lists the targets.
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Makes .venv with every extra that the tests need, pinned.

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No python3.11 or python3 on PATH; name one: make PYTHON=/path/to/python3"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "playserve needs Python 3.11 or newer; $(PYTHON) is older. Name another: make PYTHON=/path/to/python3"; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV) || { \
		echo "Could not make $(VENV). On Debian: apt-get install python3-venv"; exit 1; }
	@echo "Installing playserve[$(EXTRAS)] and the development tools into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip==$(PIP_VERSION)'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS) \
		-e '.[$(EXTRAS)]' --group dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS) \
		-e '.[play]' >$(VENV)/play.log 2>&1 || \
		echo "Left out: playserve[play], the desktop client (pynput needs a C compiler and kernel headers; $(VENV)/play.log)"
	@$(BIN)/python tests/bench/peers/triton.py 2>$(VENV)/triton.log || \
		echo "Left out: a real Triton server for the tests that want one ($(VENV)/triton.log)"
	@$(BIN)/python -m pip check
	@touch $(STAMP)

demo: $(STAMP) ## Trains, serves and plays Freeway, Breakout and NetHack agents, plays a carried Doom agent; a table, and a page in runs/demo.
	$(BIN)/playserve demo --out $(DEMO_OUT)

demo-doom: $(STAMP) ## A small policy plays Doom by keys, mouse and instruction, within 15 minutes; films in runs/demo-doom.
	$(BIN)/playserve demo doom --out $(DEMO_DOOM_OUT)

demo-world: $(STAMP) ## The world model that the package carries is served and filmed, ready to be played in; films in runs/demo-world.
	$(BIN)/playserve demo world $(if $(WORLD_CHECKPOINT),--checkpoint $(WORLD_CHECKPOINT)) --out $(DEMO_WORLD_OUT)

doom: $(STAMP) ## The whole Doom recipe: an hour of recording and training, then every measurement, also at a desktop.
	$(BIN)/playserve demo doom --full --out $(DOOM_OUT)

test: lint types ## Lint, types, import floors and every fast test.
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

lint: $(STAMP) ## ruff and the import floors.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(STAMP) ## mypy, strict, on the four packages and the tools.
	$(BIN)/mypy
	$(BIN)/mypy deploy/dev
	MYPYPATH=deploy:deploy/grafana:deploy/images $(BIN)/mypy deploy/fleet.py deploy/chart_schema.py \
		deploy/upgrade_check.py deploy/grafana/make.py deploy/images/build.py

fix: $(STAMP) ## Formats, and mends what ruff can mend.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

gen: $(STAMP) ## Regenerates the protobuf code beside its source.
	$(BIN)/python deploy/dev/protogen.py --out proto

baseline: $(STAMP) ## Makes today's wire the baseline; refuses a break that CHANGELOG.md does not name.
	$(BIN)/python deploy/dev/wirecheck.py --update

bench: $(STAMP) ## The budgets, measured; results in runs/bench.
	@mkdir -p $(BENCH_OUT); status=0; \
	for script in $$(grep -l __main__ tests/bench/bench_*.py); do \
		name=$$(basename $$script .py); echo "== $$name"; \
		$(BIN)/python $$script --out $(BENCH_OUT)/$${name#bench_}.json $(BENCH_ARGS) || status=1; \
	done; exit $$status

fuzz: $(STAMP) ## A long search for bytes that break the decoding, then a million random messages to a real server (hours).
	@for target in play_request rollout_request play_response status recap traceparent session; do \
		$(BIN)/python tests/fuzz/fuzz.py $$target --seconds 600 || exit 1; done
	PYTHONPATH=tests/support:tests/fuzz $(BIN)/python tests/fuzz/crowd.py --messages 1000000

audit: $(STAMP) ## Licences of everything pinned, and known vulnerabilities (needs pip-audit and a network).
	$(BIN)/python deploy/dev/audit.py licences
	$(BIN)/python deploy/dev/audit.py vulnerabilities

gpu: ## Every GPU test and benchmark, on a machine with torch and nothing of ours installed (needs: deploy/dev/README.md).
	$(GPU_PYTHON) deploy/dev/gpu.py $(PYTEST_ARGS)

gpu-wheels: $(STAMP) ## Fetches into .wheels what an offline machine with torch lacks for `make gpu`.
	$(BIN)/python -m pip download --quiet --no-deps --only-binary=:all: -c constraints.txt $(PIP_ARGS) \
		-d .wheels $(GPU_WHEELS)

system-deps: ## Installs the Debian packages that some tests need (as root; else says what it would install).
	bash deploy/dev/system-deps.sh

constraints: $(STAMP) ## Writes what .venv holds to constraints.txt, after adding the extra `play` (needs a C compiler).
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e '.[play,$(EXTRAS)]'
	$(BIN)/python deploy/dev/freeze.py constraints.txt

clean: ## Removes caches and build products; keeps .venv and runs.
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find $(SOURCE_ROOTS) tests deploy -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## clean, and removes .venv.
	rm -rf $(VENV)
