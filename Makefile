# Two commands are the whole set-up: `make demo` and `make test`. Both create .venv the first time and reuse it after.
# Needs make and Python 3.11 or newer; PYTHON=python3.12 chooses another one.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml setup.py constraints.txt | cksum | cut -d' ' -f1)
PYTEST := $(BIN)/python -m pytest

.PHONY: demo test test-all lint setup clean

demo: setup  ## train, serve and grade the embedded study, then say where the report is
	$(BIN)/distill study run presets/embedded.yaml --out out/demo

test: setup lint  ## all checks
	$(PYTEST) -m "not long"

test-all: setup lint  ## all checks and the long randomised tests
	$(PYTEST)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

setup: $(STAMP)

# torch first, so that nothing else chooses its build. On a machine without a GPU vLLM's CPU build asks for torchvision,
# torchaudio and torchcodec, whose only builds are for CUDA: they fail to import and take transformers down, so they go
# again; text models need none of them.
$(STAMP): pyproject.toml setup.py constraints.txt
	@echo "setting up $(VENV) (a few minutes the first time)"
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then \
	  $(BIN)/pip install --quiet 'vllm==0.32.*' liger-kernel -e '.[dev]'; \
	else \
	  $(BIN)/pip install --quiet torch==2.13.0 && \
	  $(BIN)/pip install --quiet -c constraints.txt -e '.[cpu,dev]' && \
	  $(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec; \
	fi
	rm -f $(VENV)/.installed-*
	touch $@

clean:
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .ruff_cache
