# Everything runs in a local environment of its own, made by the first target that needs it.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS := .venv-docs/.ready
OUT := out

.PHONY: docs docs-serve docs-look demo test test-all coverage families picture tables lint bench fuzz trust scale study study-report study-check real clean

$(READY): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[hub,verify,report,test]'
	touch $(READY)

demo: $(READY)
	rm -rf $(OUT)/demo
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python examples/demo.py --output $(OUT)/demo

test: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

test-all: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m ""

coverage: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal --cov --cov-report term -k "not start_up_is_quick"

families: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal tests/laws/test_families.py tests/operators/test_experts.py -m "" --write-families $(addprefix --family ,$(FAMILY))

# The site has an environment of its own: its tools are not needed to grow or to test.
$(DOCS): docs/requirements.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	touch $(DOCS)

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build

docs-serve: $(DOCS)
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs serve

# Every page in light, in dark and on a phone, in a browser: CHROMIUM=path, where it is not found by itself.
docs-look: docs
	.venv-docs/bin/python docs/look_at_site.py --output $(OUT)/site-pictures

picture: $(READY)
	$(BIN)/python docs/draw_architecture.py
	$(BIN)/python docs/draw_concepts.py
	$(BIN)/python docs/draw_diagnosis.py

tables: $(READY)
	$(BIN)/python -m docs.write_tables

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/bench.py --output $(OUT)/bench

fuzz: $(READY)
	$(BIN)/python benchmarks/fuzz.py

trust: $(READY)
	$(BIN)/python benchmarks/trust.py --report docs/trust-figures.md

scale: $(READY)
	$(BIN)/python benchmarks/scale.py --bench $(OUT)/bench/bench.json --output docs/scale.md
	$(BIN)/python benchmarks/scale_training.py --work $(OUT)/bench --output docs/scale-training.md

# About 4 hours on two idle cores. It can be interrupted and resumes.
study: $(READY)
	$(BIN)/python benchmarks/study.py run --output $(OUT)/study
	$(BIN)/python benchmarks/study.py collect --output $(OUT)/study
	$(MAKE) study-report

# The tables and pictures, from the stored results in docs/study.
study-report: $(READY)
	$(BIN)/python benchmarks/study.py report

# Repeats one seed of one arm and compares it with the stored result: five minutes on one core.
study-check: $(READY)
	$(BIN)/python benchmarks/study.py check

# Downloads two published models (0.3 GB) into ~/.cache/growth-real, or $GROWTH_REAL_CACHE; takes 22 minutes of processor time.
real: $(READY)
	$(BIN)/python benchmarks/real.py --report docs/real-models.md

clean:
	rm -rf $(VENV) $(OUT) build dist *.egg-info
