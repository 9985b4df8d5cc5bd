# Needs python3 (3.11 to 3.13, with venv), make and git; everything else is installed into .venv.
#
#   make run      a picture from a prompt: the base package only, no torch, no CUDA
#   make test     the default test suite
#   make help     all targets
#
# What the tests test: the sources of this tree. pytest puts the top folder first on the path
# (pyproject.toml), and so does tests/conftest.py for the processes that tests start, so the copy in
# .venv, which `make run` uses, cannot hide a change. tests/test_packaging.py builds a wheel and an
# sdist and looks into them; `make wheel-check` installs one and runs it.

PYTHON ?= python3
VENV ?= .venv
PROMPT ?= a red fox left of a blue star on a yellow background
FLAVOUR ?= tensorrt
RUN_ARGS ?= --lanes 2 --mode aggressive --steps 50 --seed 7 -o fox.png

# Installed before the test extras, so that nothing picks another build. Where the package index's own
# wheel of torch brings CUDA along and you want the CPU build, name PyTorch's CPU index here:
#   make test TORCH="torch==2.13.0 --index-url <PyTorch's CPU index>"
TORCH ?= torch==2.13.0

# Processes that share the tests, file by file. Each may take 3 GB; WORKERS=0 runs all in one.
WORKERS ?= 2

PY := $(VENV)/bin/python
PYTEST := $(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
INSTALL := $(PY) -m pip install --quiet --constraint constraints.txt
# The pins hold for the isolated build of the package too: older pip reads the first name, newer the second.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Links are followed: export/ and engines/ are part of the package.
SOURCES := pyproject.toml constraints.txt CMakeLists.txt \
  $(shell find -L driffusion_trt -type f ! -path '*/__pycache__/*')

.PHONY: help run test test-slow test-full test-gpu bench-gpu bench-serve serve-faults sim-report lint lint-tensorrt demo-train wheel-check clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' $(firstword $(MAKEFILE_LIST)) | column -t -s '|' 2>/dev/null \
	  || sed -n 's/^\([a-z-]*\):.*## /  make \1: /p' $(firstword $(MAKEFILE_LIST))

run: $(VENV)/.installed ## a picture from a prompt, on the CPU: PROMPT="..." RUN_ARGS="..."
	$(VENV)/bin/driffusion-trt run "$(PROMPT)" $(RUN_ARGS)

test: $(VENV)/.test ## the default test suite (not the slow and gpu ones): ARGS="-k plan"
	$(PYTEST) $(ARGS)

test-slow: $(VENV)/.test ## builds that are killed at random moments, and the like: minutes
	$(PYTEST) -m slow $(ARGS)

test-full: $(VENV)/.test ## SD2.1, SDXL and SD3 in full size to TensorRT-RTX plans, no GPU: half an hour, 24 GB
	$(PY) -m bench.full_build $(ARGS)

test-gpu: $(VENV)/.gpu-$(FLAVOUR) ## what only a GPU can show: FLAVOUR=tensorrt or tensorrt-rtx
	DRIFFUSION_FLAVOUR=$(FLAVOUR) $(PY) -m pytest -m gpu tests/gpu $(ARGS)

# MODELS="models/sdxl models/sd3" are folders with plans, the bundled models where there are none; resumable.
bench-gpu: test-gpu ## then every mode on 1 to N GPUs, diffusers, copies: FLAVOUR=... MODELS="..." BENCH_ARGS="..."
	DRIFFUSION_FLAVOUR=$(FLAVOUR) $(PY) -m bench.gpu $(MODELS) $(BENCH_ARGS)

# Twelve minutes on a machine with nothing else to do; CI runs one minute of it (tests/server/test_load.py).
bench-serve: $(VENV)/.test ## the service from 10 % to 300 % of its capacity: ARGS="--minutes 10 --write"
	$(PY) -m bench.serve_load $(ARGS)

serve-faults: $(VENV)/.test ## faults of lanes, clients and disks on the service, and what clients see: ARGS="--write"
	$(PY) -m bench.serve_faults $(ARGS)

# On the simulated driver, which CMake builds with a C++ compiler; no GPU.
sim-report: $(VENV)/.test ## what GPU lanes cost: driver calls, bytes, memory, host time; and races: 0
	$(PY) -m bench.sim_report $(ARGS)

lint: $(VENV)/.dev ## style, format and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy -p driffusion_trt $(addprefix -p ,$(wildcard bench))

# The wheels of TensorRT have no types: stubs are made from their bindings, which needs gcc but no GPU.
lint-tensorrt: $(VENV)/.dev ## the calls of both TensorRTs against the real bindings
	$(PY) -m bench.tensorrt_types $(ARGS)

demo-train: $(VENV)/.test ## train a bundled model anew: ARGS="--family demo-xl"; hours on a laptop, resumable
	$(PY) -m driffusion_trt.export.demo.train --work demo-training $(ARGS)

# By way of the sdist, and into an empty environment far from this folder: what a user of a release gets.
wheel-check: $(PY) ## build the wheel, install it elsewhere and make a picture with it
	$(INSTALL) build
	@set -eu; there=$$(mktemp -d); trap 'rm -rf "$$there"' EXIT; \
	$(PY) -m build --outdir "$$there/dist" . >"$$there/log" 2>&1 || { cat "$$there/log"; exit 1; }; \
	wheel=$$(echo "$$there"/dist/*-py3-none-any.whl); \
	test -f "$$wheel" || { echo "no py3-none-any wheel in:"; ls "$$there/dist"; exit 1; }; \
	ls -l "$$there"/dist | awk 'NR > 1 { print "built", $$NF, $$5, "bytes" }'; \
	$(PYTHON) -m venv "$$there/venv"; \
	"$$there/venv/bin/python" -m pip install --quiet --constraint constraints.txt "$$wheel"; \
	mkdir "$$there/elsewhere"; cd "$$there/elsewhere"; \
	../venv/bin/driffusion-trt --version; \
	../venv/bin/driffusion-trt run "a red circle" --steps 10 --lanes 2 --mode aggressive --seed 1 -o out.png; \
	test -s out.png; echo "wheel-check: the installed wheel made a picture"

clean: ## remove what the targets above made, except a trained model
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis fox.png
	find -L driffusion_trt bench tests -type d -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(PY):
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(SOURCES) | $(PY)
	$(INSTALL) .
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt Makefile | $(PY)
	$(INSTALL) $(TORCH)
	$(INSTALL) ".[test]"
	@touch $@ $(VENV)/.installed

# The driver has to be one for CUDA 13.
$(VENV)/.gpu-$(FLAVOUR): pyproject.toml constraints.txt $(VENV)/.test
	$(INSTALL) ".[$(FLAVOUR)]"
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.test
	$(INSTALL) ".[dev]"
	@touch $@
