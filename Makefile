# Everything a fresh machine needs is made here: `make demo` and `make test` call for no other step.
# PYTHON: the interpreter the .venv is made from. TORCH: which torch the .venv gets.
PYTHON ?= python3
TORCH ?= torch==2.14.1
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.ready
OUT ?= out
# WORKERS: tests at once. One thread each: the threads of several would wait for each other.
WORKERS ?= 2
# What runs on both simulated devices: what asks the backend, or moves and counts bytes by it.
BOTH_DEVICES = tests/accelerator tests/memory/strategies/test_group_offload.py \
  $(addprefix tests/memory/test_,$(addsuffix .py,backend cleanup device evict handles highwater \
  monitor optimizer peaks teardown trim))
# Bytecode is kept: each worker and each ComfyUI would compile all modules anew.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadscope

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-matrix test-between test-hosts test-faults lint bench-sdxl \
  bench-budgets bench-plan bench-peers bench-float8 bench-vae bench-overhead bench-release bench-web clean

help:
	@echo "make demo         four levels on a small pipeline: table, chart and images in $(OUT)/"
	@echo "make test         lint, types, every test (hosts too where a ComfyUI is found)"
	@echo "make test-fast    the tests that need neither a ComfyUI nor a minute"
	@echo "make test-matrix  every level with every budget in ComfyUI, and many more sequences"
	@echo "make test-between  whole prompts at every level: what they leave, peaks, interrupts, leaks"
	@echo "make test-hosts   every test inside ComfyUI in every version, on every device, with every frontend"
	@echo "make test-faults  a prompt in ComfyUI that runs out of memory at every single allocation"
	@echo "make bench-overhead  what Optimize Pipeline costs at level none, in ComfyUI"
	@echo "make bench-release   what giving memory back between nodes costs and leaves, in ComfyUI"
	@echo "make bench-web       what the overlay costs the page and the server (needs chromium)"
	@echo "make bench-peers  the levels beside diffusers' own modes and other packages (about 5 minutes)"
	@echo "make bench-vae    exact VAE tiling beside blended tiles, to 2048 px (hours on two cores, 8 GiB of RAM)"
	@echo "make bench-budgets 100 random budgets: kept, same images, no more moved than by diffusers"
	@echo "make bench-plan    predictions beside published measurements, and how long planning takes"
	@echo "make bench-sdxl   SDXL 1.0 at 1024 px, one step, four levels (about 13 minutes, 22 GiB of RAM)"

$(STAMP): requirements.txt pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Lowtide needs Python 3.10 or newer; set PYTHON=/path/to/python3.x"; exit 1; }
	@command -v $${CXX:-g++} >/dev/null || \
	  { echo "The simulated accelerator needs a C++ compiler: install g++ (Debian: build-essential)"; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(PY) -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	@touch $@

setup: $(STAMP)
	$(PY) -m lowtide.tests.accelerator.build

demo: setup
	$(PY) -m lowtide demo --out $(OUT)

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy memory

# Pages take a third of a core while they wait: the browser has its turn when the rest is done.
test: setup lint
	$(PYTEST) -m "not host and not slow"
	$(PYTEST) -m "slow and not host"
	LOWTIDE_SIM=cuda $(PYTEST) $(BOTH_DEVICES) -m "not host and not slow"
	$(PYTEST) -m host --ignore tests/browser
	$(PYTEST) tests/browser

test-fast: setup
	$(PYTEST) -m "not host and not slow"

test-matrix: setup
	LOWTIDE_TEST_MATRIX=full LOWTIDE_TEST_SEQUENCES=200 $(PYTEST) \
	  tests/memory/adapters/comfy/test_matrix.py tests/memory/adapters/comfy/test_sequences.py

test-between: setup
	LOWTIDE_TEST_BETWEEN=full LOWTIDE_TEST_HOSTS=full $(PYTEST) \
	  tests/memory/adapters/comfy/test_prompts.py

test-hosts: setup
	LOWTIDE_TEST_HOSTS=full $(PYTEST) -m host

test-faults: setup
	LOWTIDE_TEST_FAULTS=all $(PYTEST) tests/memory/adapters/comfy/test_faults.py

bench-overhead: setup
	$(PY) -m lowtide bench --overhead --simulate npu

bench-release: setup
	$(PY) -m lowtide bench --releasing --simulate npu

bench-web: setup
	OMP_NUM_THREADS=1 $(PY) -m lowtide.tests.browser.cost
	$(PY) -m lowtide bench --sampling --simulate npu

bench-peers: setup
	$(PY) -m lowtide bench --model sdxl-small --peers --simulate cuda

bench-budgets: setup
	OMP_NUM_THREADS=1 $(PY) -m lowtide bench --budgets 100 --simulate cuda

# Both are run, and either may fail the whole.
bench-plan: setup
	status=0; $(PY) -m lowtide plan --published || status=1; \
	  $(PY) -m lowtide plan --speed || status=1; exit $$status

bench-vae: setup
	for size in 1024 2048; do for vae in small small-16 full full-16; do \
	  $(PY) -m lowtide bench --vae $$vae --size $$size --simulate npu; done; done

bench-sdxl: setup
	$(PY) -m lowtide bench --model sdxl --size 1024 --steps 1 --simulate npu --chart $(OUT)/sdxl.png

bench-float8: setup
	$(PY) -m lowtide bench --float8

clean:
	rm -rf $(VENV) $(OUT) build *.egg-info
