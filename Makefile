# `make demo` attacks the embedded digits, `make test` runs every test; each sets itself up in .venv.
# Needs Python >= 3.10, a C++20 compiler, cmake >= 3.25 and a package index.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WHEEL_VENV := build/wheel/venv
PIP := $(BIN)/python -m pip --disable-pip-version-check install --prefer-binary -c constraints-dev.txt
ifneq ($(ADVCORE_DATA),)
export ADVCORE_DATA := $(abspath $(ADVCORE_DATA))
else
unexport ADVCORE_DATA
endif
export OMP_WAIT_POLICY ?= passive

SOURCES := pyproject.toml CMakeLists.txt constraints-dev.txt README.md \
           $(shell find advcore csrc kernels python_bindings -type f ! -name '*.pyc' 2>/dev/null)
FORMATTED = $(shell find csrc python_bindings tests benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test lint format bench stub options train wheel check-long clean

demo: $(VENV)/installed-demo
	$(BIN)/advcore attack

test: $(VENV)/installed-dev lint
	$(BIN)/pytest

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/make_stub.py --check
	$(BIN)/python tools/make_options.py --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

# The rivals take part where adv-lib is installed; see CONTRIBUTING.md.
bench: $(VENV)/installed-dev
	$(BIN)/python benchmarks/bench_speed.py $(BENCH)
	$(BIN)/python benchmarks/make_pages.py speed

# The types of the compiled module, written from the module itself.
stub: $(VENV)/installed-dev
	$(BIN)/python -P tools/make_stub.py

# The page of all options, written from advcore/options.py.
options: $(VENV)/installed-dev
	$(BIN)/python tools/make_options.py

# Trains the network of the package again (a minute on one core).
train: $(VENV)/installed-dev
	$(BIN)/python tools/train_embedded.py

# A wheel for every Linux with glibc 2.28 or later, in dist/.
wheel: $(WHEEL_VENV)/installed
	$(WHEEL_VENV)/bin/python tools/make_wheel.py $(WHEEL)

# What is too long for `make test`; goes on where it stopped.
check-long: $(WHEEL_VENV)/installed
	$(WHEEL_VENV)/bin/python tools/check_long.py $(PARTS)

clean:
	rm -rf build dist $(VENV)

$(WHEEL_VENV)/installed: tools/wheel/requirements.txt constraints-dev.txt
	$(PYTHON) -m venv $(WHEEL_VENV)
	$(WHEEL_VENV)/bin/python -m pip --disable-pip-version-check install --prefer-binary \
	  -c constraints-dev.txt -r tools/wheel/requirements.txt
	touch $@

$(VENV)/python:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/installed-demo: $(VENV)/python $(SOURCES)
	$(PIP) ".[cli]"
	touch $@

$(VENV)/installed-dev: $(VENV)/python $(SOURCES)
	$(PIP) ".[dev]"
	touch $@ $(VENV)/installed-demo
