# Every target makes what it needs, once, in .venv: `make test` works on a fresh machine.
# Another Python: make test PYTHON=/path/to/python3.12

PYTHONS = $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.10)
VENV    = .venv
RUN     = $(VENV)/bin/python
STAMP   = $(VENV)/installed
TRAIN   = --data demo --epochs 5 --batch-size 32

.PHONY: help train faces test lint bench lock

help:  ## say what there is to make
	@sed -n 's/^\([a-z]*\):.*##/make \1  /p' Makefile

train: $(STAMP)  ## train on the demo faces (settings: TRAIN="--data ...")
	$(RUN) train.py $(TRAIN)

faces: $(STAMP)  ## draw faces
	$(RUN) generate.py

test: $(STAMP)  ## run the tests
	$(RUN) -m pytest

lint: $(STAMP)  ## check style and format
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

bench: $(STAMP)  ## measure the speed: half an hour on 2 cores
	$(RUN) benchmarks/speed.py

PIP_COMPILE = $(VENV)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 \
	--generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock"

lock:  ## renew locks/ from the requirements files
	test -x $(RUN) || $(MAKE) $(STAMP)
	$(RUN) -m pip install --quiet "uv>=0.11,<1"
	$(PIP_COMPILE) requirements.txt -o locks/cpu.txt
	$(PIP_COMPILE) requirements-dev.txt -c locks/cpu.txt -o locks/dev.txt
	echo "tensorflow[and-cuda]" | $(PIP_COMPILE) requirements.txt - -c locks/cpu.txt -o locks/gpu.txt

# Written last: a half-made environment has no stamp, and is made again from nothing.
$(STAMP): locks/dev.txt
	@rm -rf $(VENV); found=; \
	for python in $(PYTHONS); do \
	  "$$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null || continue; \
	  found=$$python; \
	  "$$python" -c 'import ensurepip, venv' 2>/dev/null || continue; \
	  echo "Installing into $(VENV) with $$python: a few minutes, once."; \
	  "$$python" -m venv $(VENV) && exec $(RUN) -m pip install --quiet --disable-pip-version-check --require-hashes -r $<; \
	  exit 1; \
	done; \
	if [ "$$found" ]; then \
	  echo "$$found cannot make virtual environments. On Debian or Ubuntu: apt install python3-venv" >&2; \
	else \
	  echo "No Python 3.10 to 3.13 found (tried: $(PYTHONS)). Install one, or name it: make PYTHON=/path/to/python3.12" >&2; \
	fi; \
	exit 1
	@touch $@
