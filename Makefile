# make demo   train FP, LSQ and FPQ on Fashion-MNIST through mim; table, picture
# make test   the test suite
# make lint   ruff and mypy
# make docs   the manual, in build/docs
# Each makes what it needs, in the checkout, and is quick the second time.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PINS := requirements/py311-torch212.txt
INSTALLED := $(VENV)/.installed
FOR_DOCS := $(VENV)/.installed_docs
DATA := data/fashion_mnist

.PHONY: demo test test-slow lint docs data clean

$(INSTALLED): setup.py $(PINS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r $(PINS) -e .[dev]
	touch $@

$(FOR_DOCS): $(INSTALLED)
	$(BIN)/pip install --quiet -r $(PINS) -e .[docs]
	touch $@

data: $(INSTALLED)
	$(BIN)/python tools/fashion_mnist.py $(DATA)

demo: data
	$(BIN)/python tools/demo.py --data data --out work_dirs/demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/mypy

docs: $(FOR_DOCS)
	$(BIN)/sphinx-build -W --keep-going -b html docs build/docs

clean:
	rm -rf $(VENV) data work_dirs build *.egg-info
