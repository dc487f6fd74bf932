# Everything a newcomer needs: `make demo` shows medlite, `make test` proves it.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := pyproject.toml setup.py constraints.txt

.PHONY: demo test test-slow lint lint-kernels sanitize install clean

demo: .venv/installed
	$(BIN)/medlite demo

test: .venv/installed-dev
	$(BIN)/python -m pytest

test-slow: .venv/installed-dev
	$(BIN)/python -m pytest -m slow

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The kernels, compiled apart from the installed ones. 15 seconds.
lint-kernels: .venv/installed-dev
	MEDLITE_KERNEL_FLAGS="-Wall -Wextra -Werror" \
	$(BIN)/python setup.py -q build_ext --force --build-lib build/strict --build-temp build/strict/objects

# AddressSanitizer and UndefinedBehaviorSanitizer over the kernels' tests, with kernels and packages of their own in
# build/sanitize. One minute. Python is not built with ASan, so its runtime goes first; Python's own leaks do not count.
SANITIZERS = -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1
sanitize: .venv/installed-dev
	rm -rf build/sanitize
	MEDLITE_KERNEL_FLAGS="$(SANITIZERS)" $(BIN)/python setup.py -q \
	build --build-base build/sanitize --build-lib build/sanitize/lib --build-temp build/sanitize/objects
	LD_PRELOAD=$$($(CXX) -print-file-name=libasan.so):$$($(CXX) -print-file-name=libstdc++.so) \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 MEDLITE_SANITIZED=build/sanitize/lib \
	$(BIN)/python -m pytest -p no:cacheprovider -o "pythonpath=build/sanitize/lib ." tests/quantize/kernels

install: .venv/installed

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

define INSTALL
@echo "Installing into .venv, once. llama-cpp-python compiles llama.cpp here: 5 to 9 minutes on two cores, unless pip"
@echo "finds a wheel of it (README.md, \"Installing faster\"). The whole output is in .venv/install.log."
@$(PYTHON) .ci/watch.py .venv/install.log $(BIN)/python -m pip install --verbose --progress-bar off -c constraints.txt
endef

.venv/installed: $(SOURCES) | .venv/bin/python
	$(INSTALL) -e .
	touch $@

.venv/installed-dev: $(SOURCES) | .venv/bin/python
	$(INSTALL) -e '.[dev]'
	touch .venv/installed $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
