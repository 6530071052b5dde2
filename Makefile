# Everything a person needs: `make demo`, `make test`. Each sets itself up in .venv.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-kubernetes check soak bench bench-switch bench-engine bench-judge bench-detect bench-services bench-real bench-pipeline bench-kube-switch bench-kube-services bench-backup bench-rotation lock schema docs clean

demo: $(VENV)/.base
	@$(BIN)/dafnck demo $(ARGS)

test: $(VENV)/.test
	@$(BIN)/python -m pytest -q -n 3 --dist worksteal $(ARGS)

# Against the cluster of the kubeconfig, in namespaces of their own that the tests remove.
test-kubernetes: $(VENV)/.test
	@DAFNCK_TEST_KUBECONFIG=$${KUBECONFIG:-$$HOME/.kube/config} \
	  $(BIN)/python -m pytest -q -m kubernetes $(ARGS)

check: $(VENV)/.test
	@$(BIN)/ruff format --check . && $(BIN)/ruff check .
	@$(BIN)/mypy policy blocks tasks flows deployments
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python -m pytest -q tests/test_entrypoints.py tests/test_docs.py

# The faults that take long, then everything killed at every step, under load.
soak: $(VENV)/.test
	@$(BIN)/python -m pytest -q -m soak
	@$(BIN)/python tests/soak.py $(ARGS)
	@$(BIN)/python tests/soak.py --platform docker --every 2 --random 50 --worker 10 --json .bench/soak-docker.json
	@$(BIN)/python tests/soak.py --platform kubernetes --every 2 --random 50 --worker 10 --json .bench/soak-kubernetes.json

bench: bench-switch bench-engine bench-judge bench-detect bench-services bench-real bench-pipeline bench-kube-services

bench-detect: $(VENV)/.test
	@$(BIN)/python -m bench.detect $(ARGS)

bench-services: $(VENV)/.test
	@$(BIN)/python -m bench.services $(ARGS)

bench-real: $(VENV)/.test
	@$(BIN)/python -m bench.real $(ARGS)

bench-pipeline: $(VENV)/.test
	@$(BIN)/python -m bench.pipeline $(ARGS)

bench-judge: $(VENV)/.test
	@$(BIN)/python -m bench.judge $(ARGS)

bench-switch: $(VENV)/.test
	@$(BIN)/python -m bench.switch $(ARGS)

bench-kube-services: $(VENV)/.test
	@$(BIN)/python -m bench.kube_services $(ARGS)

bench-kube-switch: $(VENV)/.test
	@$(BIN)/python -m bench.kube_switch $(ARGS)

bench-rotation: $(VENV)/.test
	@$(BIN)/python -m bench.rotation $(ARGS)

bench-backup: $(VENV)/.test
	@$(BIN)/python -m bench.backup $(ARGS)

bench-engine: $(VENV)/.test
	@$(BIN)/python -m bench.engine $(ARGS)

# The locks name versions and hashes, no addresses.
lock: $(VENV)/bin/uv
	@for extra in base test; do \
	  $(VENV)/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes \
	    --no-annotate --no-header $$([ $$extra = base ] || echo "--extra $$extra") $(ARGS) \
	    pyproject.toml -o requirements/$$extra.txt || exit 1; done
	@echo hatchling | $(VENV)/bin/uv pip compile -q --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --no-header - -o requirements/build.txt

schema docs: $(VENV)/.base
	@$(BIN)/python -m deployments.reference

clean:
	rm -rf $(VENV) .demo .bench

$(VENV)/bin/uv:
	@command -v $(PYTHON) >/dev/null || { echo "python3 is missing: apt-get install python3 python3-venv"; exit 3; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "$$($(PYTHON) --version) does not do; name one from 3.11 to 3.13: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 3; }
	@$(PYTHON) -m venv $(VENV) || { echo "venv is missing: apt-get install python3-venv"; exit 3; }
	@$(VENV)/bin/python -m pip install -q --disable-pip-version-check uv

$(VENV)/.base: requirements/base.txt pyproject.toml | $(VENV)/bin/uv
	@$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r requirements/base.txt
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --build-constraints requirements/build.txt -e .
	@touch $@

$(VENV)/.test: requirements/test.txt $(VENV)/.base
	@$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r requirements/test.txt
	@touch $@
