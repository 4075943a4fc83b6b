# Every target does its own set-up on a fresh machine: it needs Python 3.11 or newer, nothing else.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := esvit trainer service benchmarks tests

.PHONY: help install serve figures screenshot model format lint types check test test-all processes end-to-end clients ray fuzz soak coverage clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/serve: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/dev: .venv/serve
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,dev]'
	touch $@

# A browser for the tests of the playground, from the system's packages or Playwright's.
.venv/browser: .venv/dev
	$(BIN)/python -m tests.browser.chromium
	touch $@

# What monitoring is held against, from Debian's package.
.venv/prometheus/done: .venv/dev
	$(BIN)/python -m tests.service.prometheus
	mkdir -p $(@D) && touch $@

install: .venv/dev  ## everything, for working on the project

serve: .venv/serve  ## the service on 127.0.0.1:8000 with the default model; needs no torch
	$(BIN)/python -m service

model: .venv/dev  ## train the default model again, from its pictures on: an hour and a half; interrupted, it goes on
	$(BIN)/python -m trainer.datasets drawings --out data/drawings
	$(BIN)/python -m trainer.pretrain nano --data.path data/drawings/train --out runs/nano --licence Apache-2.0
	$(BIN)/python -m trainer.export_onnx --checkpoint runs/nano/teacher.safetensors --image-size 128 \
		--whiten data/drawings/train --whiten-from layout --out service/models/default.onnx

PHOTOGRAPHS := service/photographs
FIGURE := $(BIN)/python -m trainer.visualize
OF_DEFAULT := --model service/models/default.onnx

figures: .venv/dev screenshot  ## every picture in docs/, after a change of the default model
	$(FIGURE) regions $(OF_DEFAULT) $(addprefix $(PHOTOGRAPHS)/,cat.jpg coffee.jpg rocket.jpg) --panel 180 --out docs/tour/regions.png
	$(FIGURE) correspondence $(OF_DEFAULT) $(PHOTOGRAPHS)/cat.jpg --panel 224 --out docs/tour/correspondence.png
	$(FIGURE) attention $(OF_DEFAULT) $(PHOTOGRAPHS)/cat.jpg --heads 5 --panel 140 --out docs/tour/attention.png
	$(BIN)/python -m zipfile -e tests/reference/emoji/sample.zip build/emoji
	$(FIGURE) correspondence $(OF_DEFAULT) build/emoji/animals-nature/1f406__google.png --panel 224 --out docs/tour/leopard.png
	$(FIGURE) correspondence $(OF_DEFAULT) build/emoji/animals-nature/1f980__google.png --panel 224 --out docs/tour/crab.png

screenshot: .venv/browser  ## the picture in docs/playground.md
	$(BIN)/python -m tests.browser.screenshot docs/playground.png

format: .venv/dev  ## format the sources
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

lint: .venv/dev  ## formatting and rules
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)

types: .venv/dev  ## static types
	$(BIN)/mypy --strict

check: lint types  ## lint and types

# The service never meets torch and its forked processes, Playwright keeps an event loop on the main
# thread: each has a process of its own. So have the methods, and tests that fork after long lives of
# torch and ONNX Runtime in one process: there such forks end it (cause unknown; no command does so).
SERVING := tests/service tests/fuzz tests/test_architecture.py tests/test_readme.py tests/test_docs.py \
	tests/test_promises.py tests/test_kubernetes.py
BROWSING := tests/browser
METHOD := tests/esvit
RUNS := $(wildcard tests/trainer/test_pretrain*.py) tests/trainer/test_streams.py
TRAINING := tests/trainer $(RUNS:%=--ignore=%)

test: check .venv/browser .venv/prometheus/done  ## lint, types and the fast tests
	$(BIN)/python -m pytest $(SERVING)
	$(BIN)/python -m pytest $(BROWSING)
	$(BIN)/python -m pytest $(METHOD)
	$(BIN)/python -m pytest $(TRAINING)
	$(BIN)/python -m pytest $(RUNS)

test-all: check .venv/browser .venv/prometheus/done  ## the slow tests as well
	$(BIN)/python -m pytest -m "not gpu and not clients" $(SERVING)
	$(BIN)/python -m pytest $(BROWSING)
	$(BIN)/python -m pytest -m "not gpu" $(METHOD)
	$(BIN)/python -m pytest -m "not gpu" $(TRAINING)
	$(BIN)/python -m pytest -m "not gpu" $(RUNS)
	$(MAKE) end-to-end

processes: .venv/dev  ## runs that are killed, signalled and spread over several processes
	$(BIN)/python -m pytest -m slow tests/trainer/test_distributed.py tests/trainer/test_pretrain_resume.py tests/trainer/test_pretrain_processes.py

end-to-end: .venv/dev  ## images, a run, its features, a model file, its answers, by the commands that users type
	$(BIN)/python -m pytest -m slow tests/test_end_to_end.py

# Other people's clients and a server, each with its own pins, in environments that nothing else uses.
CLIENTS := tests/service/protocols/clients

.venv/clients/done: .venv/dev $(wildcard $(CLIENTS)/requirements*.txt)
	for name in clients clients-llama-index triton; do $(PYTHON) -m venv .venv/$$name || exit; done
	.venv/clients/bin/pip install --quiet --disable-pip-version-check -r $(CLIENTS)/requirements.txt
	.venv/clients-llama-index/bin/pip install --quiet --disable-pip-version-check \
		-r $(CLIENTS)/requirements-llama-index.txt
	.venv/triton/bin/pip install --quiet --disable-pip-version-check -r $(CLIENTS)/requirements-triton.txt
	touch $@

clients: .venv/clients/done  ## the protocols against other services' real clients, model files against Triton
	$(BIN)/python -m pytest -m clients tests/service/protocols
	$(BIN)/python -m pytest -m clients tests/trainer/test_triton.py

.venv/ray: .venv/dev
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray]'
	touch $@

ray: .venv/ray  ## bulk runs on a Ray of this machine
	$(BIN)/python -m pytest -m slow tests/service/bulk/test_on_ray.py

fuzz: .venv/dev  ## damage images, forms and binary calls until something breaks: a minute each
	$(BIN)/python -m tests.fuzz

soak: .venv/dev  ## 100 clients for 20 s, 5,000 calls, 20 reloads: what is answered, how memory grows
	$(BIN)/python -m tests.soak

coverage: .venv/dev .venv/prometheus/done  ## branch coverage of esvit and service
	$(BIN)/python -m pytest --cov --cov-branch --cov-report= $(SERVING)
	$(BIN)/python -m pytest --cov --cov-branch --cov-append --cov-report=term-missing:skip-covered $(METHOD)

clean:  ## remove what the targets made
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
