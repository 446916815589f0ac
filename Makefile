# Every target creates .venv if it does not exist.
# To choose the interpreter: make test PYTHON=/path/to/python3.12

PYTHONS = $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.10)
VENV    = .venv
RUN     = $(VENV)/bin/python
STAMP   = $(VENV)/installed
TRAIN   = --data demo --epochs 5 --batch-size 32

.PHONY: help train faces notebook test coverage lint flags bench lock

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*##/make \1  /p' Makefile

train: $(STAMP)  ## train on the demo faces (TRAIN="--data ..." sets other flags)
	$(RUN) train.py $(TRAIN)

faces: $(STAMP)  ## draw ten faces with the pretrained generator
	$(RUN) generate.py

notebook: $(STAMP)  ## run dcgan.ipynb and store its outputs (about four minutes on 2 cores)
	$(VENV)/bin/jupyter execute --inplace dcgan.ipynb

test: $(STAMP)  ## run the tests (about 6 minutes on 2 cores)
	$(RUN) -m pytest

coverage: $(STAMP)  ## run the tests and report uncovered lines
	$(RUN) -m coverage erase
	$(RUN) -m coverage run -m pytest
	$(RUN) -m coverage combine --quiet
	$(RUN) -m coverage report

lint: $(STAMP)  ## check style, format and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

flags: $(STAMP)  ## write docs/flags.md from the flags of the commands
	$(RUN) docs/flags.py

bench: $(STAMP)  ## run the benchmarks (half an hour on 2 cores; PYTORCH=/path/to/python adds PyTorch)
	@if nvidia-smi >/dev/null 2>&1; then $(RUN) benchmarks/host.py --gpu $(PYTORCH:%=--pytorch %); fi
	$(RUN) benchmarks/host.py $(PYTORCH:%=--pytorch %)
	$(RUN) benchmarks/speed.py

PIP_COMPILE = $(VENV)/bin/uv pip compile --quiet $(UPGRADE) --universal --python-version 3.10 \
	--generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock"

lock:  ## update locks/ from the requirements files (UPGRADE=--upgrade: newest versions)
	test -x $(RUN) || $(MAKE) $(STAMP)
	$(RUN) -m pip install --quiet "uv>=0.11,<1"
	$(PIP_COMPILE) requirements.txt -o locks/cpu.txt
	$(PIP_COMPILE) requirements-dev.txt -c locks/cpu.txt -o locks/dev.txt
	echo "tensorflow[and-cuda]" | $(PIP_COMPILE) requirements.txt - -c locks/cpu.txt -o locks/gpu.txt

# The stamp is written last. An environment without it is incomplete and is rebuilt.
$(STAMP): locks/dev.txt
	@rm -rf $(VENV); found=; \
	for python in $(PYTHONS); do \
	  "$$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null || continue; \
	  found=$$python; \
	  "$$python" -c 'import ensurepip, venv' 2>/dev/null || continue; \
	  echo "Installing into $(VENV) with $$python. This takes a few minutes, once."; \
	  "$$python" -m venv $(VENV) && exec $(RUN) -m pip install --quiet --disable-pip-version-check --require-hashes -r $<; \
	  exit 1; \
	done; \
	if [ "$$found" ]; then \
	  echo "$$found cannot create virtual environments. On Debian or Ubuntu: apt install python3-venv" >&2; \
	else \
	  echo "No Python 3.10 to 3.13 found (tried: $(PYTHONS)). Install one, or name it: make PYTHON=/path/to/python3.12" >&2; \
	fi; \
	exit 1
	@touch $@
