# Everything runs in .venv, made from whatever Python 3.11 or newer is at hand.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# pip's own torch brings gigabytes of CUDA. Without a GPU, a tenth of that will do:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
export TORCH_INDEX ?=
# What pytest runs: all, or for example TESTS=tests/engine.
TESTS  ?=
LATEST := .venv-latest
# What `make fuzz` tries (empty: all areas), from which seed, and for how long altogether.
AREAS   ?=
SEED    ?= 1
MINUTES ?= 20

# Where Python may keep no bytecode, each of dozens of programs that the tests start would compile
# torch anew: that alone takes minutes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo serve test test-latest test-services fuzz gpu-test lint format lock docs clean

demo: $(VENV)/.installed-run
	$(BIN)/verandah demo

serve: $(VENV)/.installed-run
	$(BIN)/verandah serve

# Types are checked beside the tests: one by one, the two would leave cores idle.
test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy > $(VENV)/mypy.txt & mypy=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not gpu and not services" -n auto --dist worksteal $(TESTS); tests=$$?; \
	wait $$mypy; types=$$?; cat $(VENV)/mypy.txt; exit $$((tests + types))

# On the newest versions that pyproject.toml allows. What they deprecate is listed at the end.
test-latest:
	rm -rf $(LATEST)
	$(PYTHON) -m venv $(LATEST)
	$(if $(TORCH_INDEX),$(LATEST)/bin/pip install --no-compile --index-url $(TORCH_INDEX) \
	    "$$(sed -n 's/^ *"\(torch[<>=].*\)",$$/\1/p' pyproject.toml)")
	$(LATEST)/bin/pip install --no-compile -e '.[dev]'
	OMP_NUM_THREADS=1 $(LATEST)/bin/pytest -m "not gpu and not services" -n auto --dist worksteal $(TESTS) \
	    -W default::DeprecationWarning -W default::PendingDeprecationWarning -W default::FutureWarning

# With what a network or another program gives. What cannot be had is skipped, by name.
test-services: $(VENV)/.installed-dev $(VENV)/.installed-postgres
	$(BIN)/pytest -m services -rs $(TESTS)

# The fuzzers, for longer than the tests run them: see docs/fuzzing.md.
fuzz: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz $(AREAS) --seed $(SEED) --minutes $(MINUTES)

gpu-test:
	python3 -m pytest -m gpu

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# `python -m` puts this folder on the path, where the site's hooks are.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Takes the newest versions that pyproject.toml allows into requirements/, and says what moved.
lock: $(BIN)/pip
	$(BIN)/pip install --quiet --require-hashes -r requirements/uv.txt
	$(BIN)/python requirements/update.py

clean:
	rm -rf $(VENV) $(LATEST) *.egg-info build site .mypy_cache .ruff_cache .pytest_cache

$(BIN)/pip:
	$(PYTHON) -c 'import sys; sys.exit("Verandah needs Python 3.11 or newer; this is " + sys.version if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# run is what Verandah needs to run; any other name is an extra of pyproject.toml, installed beside it.
$(VENV)/.installed-%: $(BIN)/pip pyproject.toml requirements/torch.txt requirements/run.txt requirements/%.txt
	requirements/install.sh $(BIN)/python $(filter-out run,$*)
	touch $(VENV)/.installed-run $@
