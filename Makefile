# The commands of the project, each a thin call of scripts/ and CMake presets.
# release or ci (warnings are errors); both build in build/release.
PRESET ?= release
JOBS ?= $(shell nproc)
# The text that `make demo` learns: files or folders, a name with spaces in quotes of its own;
# Python's standard library when empty.
DATA ?=

export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help setup build demo test test-slow format lint cuda sanitize ci clean

help:
	@echo "make demo     train the twins, softmax and Parallax, and write runs/demo/report.md (DATA='paths': your text)"
	@echo "make test     build everything and run every test, C++ and Python (the slow ones: make test-slow)"
	@echo "make build    build everything"
	@echo "make format   format all sources"
	@echo "make lint     check format, warnings, lengths and layering"
	@echo "make cuda     compile the CUDA backends and run what needs no GPU, if nvcc is there"
	@echo "make sanitize run the kernel tests under ASan, UBSan and TSan"
	@echo "make ci       lint, cuda, test, test-slow, sanitize: what continuous integration runs"

setup:
	@scripts/setup

build: setup
	cmake --preset $(PRESET)
	cmake --build build/release --parallel $(JOBS)

demo: setup
	cmake --preset release
	cmake --build build/release --parallel $(JOBS) --target plx plx_torch
	python scripts/demo.py $(if $(DATA),--data $(DATA))

test: build
	ctest --test-dir build/release --output-on-failure --label-exclude slow --parallel $(JOBS)
	python -m pytest -q -m "not slow" tests

test-slow: build
	ctest --test-dir build/release --output-on-failure --label-regex slow
	python -m pytest -q -m slow tests

format:
	scripts/format

lint: setup
	scripts/format --check
	ruff check .
	python -m pytest -q tests/repo
	$(MAKE) build PRESET=ci

cuda: setup
	@if command -v nvcc > /dev/null; then \
	  cmake --preset cuda-kernels && cmake --build --preset cuda-kernels --parallel $(JOBS) && \
	  ctest --test-dir build/cuda-kernels --output-on-failure --label-regex 'gpu|emulation' --parallel $(JOBS); \
	else \
	  echo "make cuda: SKIPPED, there is no nvcc in PATH"; \
	fi

sanitize: setup
	for preset in asan tsan; do \
	  cmake --preset $$preset && cmake --build --preset $$preset --parallel $(JOBS) && \
	  ctest --preset $$preset --parallel $(JOBS) || exit 1; \
	done

ci: lint
	$(MAKE) cuda
	$(MAKE) test PRESET=ci
	$(MAKE) test-slow PRESET=ci
	$(MAKE) sanitize

clean:
	rm -rf build python/parallax/_lib
