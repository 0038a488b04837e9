# How a person uses all this. The first target that needs it builds .venv; PYTHON=python3 uses that
# interpreter as it is instead (GPU containers bring a torch of their own).

# Each is taken from the command line, else from the environment.
MODE    ?= finetune
DATA    ?= sample
ROOT    ?= data
LOADER  ?= auto
WEIGHTS ?= imagenet
NGPU    ?= 1
OUT     ?=
ARGS    ?=

ifdef PYTHON
ready     :=
ready_dev :=
else
PYTHON    := .venv/bin/python
unexport PYTHON
ready     := .venv/ready
ready_dev := .venv/ready-dev
endif

# What was given is text: make expands no `$` in it, neither here nor where it hands variables on to programs.
$(foreach name,MODE DATA ROOT LOADER WEIGHTS NGPU OUT ARGS PYTHON,$(eval override $(name) := $$(value $(name))))

define newline


endef
export newline

# Any text as one word of the shell. A newline comes from a variable of the shell, as make ends a command at each.
quoted = '$(subst $(newline),'"$$newline"',$(subst ','\'',$(1)))'

python = $(call quoted,$(PYTHON))
pip    = $(python) -m pip install --quiet --disable-pip-version-check

# Appends the words of ARGS to a command of Python. They are quoted as in a shell; nothing in them is expanded or run.
define with_args
import os, shlex, sys

try:
    words = shlex.split(sys.argv[1])
except ValueError as error:
    sys.exit(f"ARGS: its words are not quoted as in a shell: {error}")
os.execvp(sys.argv[2], [*sys.argv[2:], *words])
endef

run    = $(if $(ARGS),$(python) -c $(call quoted,$(value with_args)) $(call quoted,$(ARGS)) )$(python)
data   = --data $(call quoted,$(DATA)) --root $(call quoted,$(ROOT))
loader = --loader $(call quoted,$(LOADER))
out    = $(if $(OUT),--out $(call quoted,$(OUT)))
launch = $(if $(filter-out 1,$(NGPU)),-m torch.distributed.run --standalone --nproc-per-node=$(NGPU))

# What is a name or a number is checked by make itself, for the targets that use it and before anything is built.
digits  := 0 1 2 3 4 5 6 7 8 9
letters := a b c d e f g h i j k l m n o p q r s t u v w x y z A B C D E F G H I J K L M N O P Q R S T U V W X Y Z

# The text $(2) without the characters $(1).
without = $(if $(1),$(call without,$(wordlist 2,$(words $(1)),$(1)),$(subst $(firstword $(1)),,$(2))),$(2))

# Of a variable, whether it is not empty and has only the characters $(2).
consists_of = $(if $($(1)),$(if $(call without,$(2),$($(1))),,yes))

ifneq ($(filter train profile,$(MAKECMDGOALS)),)
$(foreach name,MODE LOADER,$(if $(call consists_of,$(name),$(letters) $(digits) - _),,$(error \
    $(name): expected a name of letters, digits, - and _)))
$(if $(filter-out 0%,$(if $(call consists_of,NGPU,$(digits)),$(NGPU))),,$(error \
    NGPU: expected a number of GPUs, 1 or more))
endif

.DEFAULT_GOAL := help
.PHONY: help setup setup-dali setup-ffcv train bench profile gpu-check readme-tables test lint

help:
	@echo 'make train MODE=finetune                  all weights, on the embedded sample'
	@echo 'make train MODE=feature DATA=cifar10      a new head only; DATA=/path/to/images for your own'
	@echo 'make bench DATA=cifar10                   every loader here against the ordinary one'
	@echo 'make profile MODE=feature                 where the time goes, and what to change'
	@echo 'make gpu-check                            on a GPU node: everything measured, one table, one archive'
	@echo 'make test                                 the tests'
	@echo 'make lint                                 style and types'
	@echo 'make setup                                only build .venv'
	@echo 'make setup-dali, make setup-ffcv          what LOADER=dali, LOADER=ffcv stand on'
	@echo
	@printf '%s=%s ' $(foreach name,MODE DATA ROOT LOADER WEIGHTS NGPU OUT,$(name) $(call quoted,$($(name)))); echo
	@echo 'PYTHON=python3 uses that interpreter and builds nothing; ARGS=--help lists all other options.'

setup: $(ready)

# A torch for CUDA 12 wants DALI for CUDA 12.
setup-dali: $(ready)
	@cuda=$$($(python) -c 'import torch; print("120" if (torch.version.cuda or "").startswith("12") else "130")'); \
	    $(pip) "nvidia-dali-cuda$$cuda>=2.4,<3"

# FFCV has no wheels: it is compiled here, against OpenCV and libjpeg-turbo.
ffcv_packages = g++ pkg-config libopencv-dev libturbojpeg0-dev python3-dev
ffcv_headers  = command -v g++ && pkg-config --exists opencv4 libturbojpeg && \
    $(python) -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")'

setup-ffcv: $(ready)
	@if ! { $(ffcv_headers); } >/dev/null 2>&1; then \
	    sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	    if ! command -v apt-get >/dev/null; then \
	        echo 'FFCV is compiled on the spot and needs g++, pkg-config, OpenCV 4 and libjpeg-turbo with their headers' >&2; \
	        echo '(Fedora: gcc-c++ pkgconf opencv-devel turbojpeg-devel python3-devel; conda: cxx-compiler pkg-config' >&2; \
	        echo 'opencv libjpeg-turbo). Install them, then run make setup-ffcv again.' >&2; exit 2; \
	    fi; \
	    $$sudo apt-get update -q && \
	    $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends $(ffcv_packages); \
	fi
	@log=$$(mktemp); \
	if { $(pip) $$($(python) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["ffcv"])') \
	        && $(python) -W ignore -c 'import ffcv.loader'; } >"$$log" 2>&1; then \
	    rm -f "$$log"; echo 'FFCV is ready: LOADER=ffcv'; \
	else \
	    version=$$($(python) -c 'import sys; print("{}.{}".format(*sys.version_info))'); \
	    echo "FFCV does not build on this machine with Python $$version (it does on Linux with Python 3.11 to 3.14; the log is $$log): the other loaders work without it" >&2; exit 2; \
	fi

train: $(ready)
	@$(run) $(launch) -m train $(call quoted,$(MODE)) $(data) $(loader) --weights $(call quoted,$(WEIGHTS)) $(out)

bench: $(ready)
	@$(run) -m benchmarks loaders $(data) $(out)

profile: $(ready)
	@$(run) $(launch) -m benchmarks profile $(call quoted,$(MODE)) $(data) $(loader) $(out)

gpu-check: $(ready_dev)
	@$(run) -m benchmarks gpu-check --root $(call quoted,$(ROOT)) $(out)

readme-tables: $(ready)
	@$(run) -m benchmarks readme-tables

test: $(ready_dev)
	$(run) -m pytest

lint: $(ready_dev)
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

# The newest comes first: everything the project depends on has wheels for each of these, and FFCV builds on each.
interpreters = python3.14 python3.13 python3.12 python3.11 python3
supported    = sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))

# An environment that is there keeps its interpreter, so that a newer Python on the machine does not replace it.
.venv/ready: pyproject.toml
	@.venv/bin/python -c 'import sys, pip; $(supported)' 2>/dev/null && exit; \
	for python in $(interpreters); do \
	    if $$python -c 'import sys, ensurepip, venv; $(supported)' 2>/dev/null; then \
	        echo "building .venv with $$($$python --version): about two minutes and 6 GB, once"; \
	        exec $$python -m venv --clear .venv; \
	    fi; \
	done; \
	found=$$(python3 -c 'import sys; print("python3 is {}.{}".format(*sys.version_info))' 2>/dev/null) || found='there is no python3'; \
	echo "no Python 3.11 to 3.14 with venv here ($$found): install one (python3-venv on Debian), or name an interpreter that has torch with PYTHON=..." >&2; exit 2
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/ready-dev: .venv/ready
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,nvml]'
	@touch $@
