# Everything a stranger needs: `make test`, `make demo`. Each installs what is missing.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

export CARGO_TERM_COLOR ?= auto

# The real parts that tests and demo run against, and what builds them: command=package.
PARTS = redis-server=redis-server cc=build-essential
test: PARTS += promtool=prometheus redis-cli=redis-tools redis-benchmark=redis-tools
bench: PARTS += redis-cli=redis-tools redis-benchmark=redis-tools haproxy=haproxy nutcracker=nutcracker

.PHONY: help
help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

.PHONY: parts
parts: ## Install what tests and demo need (Debian, Ubuntu)
	@command -v cargo >/dev/null || { echo "install Rust first: https://rustup.rs" >&2; exit 1; }
	@missing=""; for part in $(PARTS); do \
	  command -v "$${part%%=*}" >/dev/null || missing="$$missing $${part##*=}"; done; \
	python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
	if [ -n "$$missing" ]; then \
	  command -v apt-get >/dev/null || { echo "install these first (this system has no apt-get):$$missing" >&2; exit 1; }; \
	  sudo=""; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  echo "installing:$$missing"; \
	  $$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi

.PHONY: nextest
nextest: parts
	@cargo nextest --version >/dev/null 2>&1 || cargo install --locked cargo-nextest

.venv/ok: tests/support/requirements.txt | parts
	@python3 -m venv .venv
	@.venv/bin/pip install -q --disable-pip-version-check -r $<
	@touch $@

tests/clients/node_modules/.package-lock.json: tests/clients/package.json tests/clients/package-lock.json | parts
	@node -e 'process.exit(Number(process.versions.node.split(".")[0]) < 20 ? 1 : 0)' 2>/dev/null && command -v npm >/dev/null \
	  || { echo "install Node.js 20 or newer, with npm, first: https://nodejs.org" >&2; exit 1; }
	@cd tests/clients && npm ci --no-audit --no-fund --ignore-scripts --silent
	@touch $@

.PHONY: build
build: ## Build the program and the rig
	cargo build --locked --workspace

.PHONY: lint
lint: ## Format and clippy
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

.PHONY: demo
demo: parts .venv/ok ## Watch plain clients while their replica dies and returns; KEEP=1 leaves all running
	cargo build --locked --workspace
	.venv/bin/python tests/demo/demo.py --programs $${CARGO_TARGET_DIR:-target}/debug $(if $(filter-out 0,$(KEEP)),--keep)

.venv/bench: benches/compare/requirements.txt .venv/ok
	@.venv/bin/pip install -q --disable-pip-version-check -r $<
	@touch $@

.PHONY: bench
bench: parts .venv/bench ## Beside HAProxy, twemproxy, Envoy and no proxy: CPU, throughput, latency, memory; draws benches/comparison.svg
	cargo build --locked --release --package pulsegate
	.venv/bin/python benches/compare/compare.py --pulsegate $${CARGO_TARGET_DIR:-target}/release/pulsegate --plot benches/comparison.svg

HOURS ?= 10000
.PHONY: sim-hours
sim-hours: ## Ten thousand simulated hours of each profile (HOURS=n), with nothing but the spare time of the machine; writes docs/detection.md
	RENEW_DETECTION_DOCS=1 PULSEGATE_SIM_HOURS=$(HOURS) nice -n 19 cargo test --locked --package pulsegate --lib \
	  --config profile.dev.package.pulsegate.opt-level=3 --config profile.dev.package.pulsegate.debug-assertions=false \
	  -- --nocapture --test-threads 1 decision::sim::field

.PHONY: microbench
microbench: parts ## What a frame, a reply's turn and a queued command cost, one by one
	cargo bench --locked --package pulsegate

.PHONY: test
test: parts nextest .venv/ok tests/clients/node_modules/.package-lock.json lint ## Every test, against real servers
	cargo nextest run --locked --workspace --no-fail-fast
