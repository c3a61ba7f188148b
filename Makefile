# Everything a stranger needs: `make test`, `make demo`. Each installs what is missing.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

export CARGO_TERM_COLOR ?= auto

# The real parts that the tests run against: command=package.
DEBIAN_PARTS := redis-server=redis-server promtool=prometheus

.PHONY: help
help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

.PHONY: parts
parts: ## Install what tests and demo need (Debian, Ubuntu)
	@missing=""; for part in $(DEBIAN_PARTS); do \
	  command -v "$${part%%=*}" >/dev/null || missing="$$missing $${part##*=}"; done; \
	python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
	if [ -n "$$missing" ]; then \
	  command -v apt-get >/dev/null || { echo "install these first (this system has no apt-get):$$missing" >&2; exit 1; }; \
	  sudo=""; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  echo "installing:$$missing"; \
	  $$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi
	@cargo nextest --version >/dev/null 2>&1 || cargo install --locked cargo-nextest

.venv/ok: tests/support/requirements.txt | parts
	@python3 -m venv .venv
	@.venv/bin/pip install -q --disable-pip-version-check -r $<
	@touch $@

.PHONY: build
build: ## Build the program and the rig
	cargo build --locked --workspace

.PHONY: lint
lint: ## Format and clippy
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

.PHONY: test
test: parts .venv/ok lint ## Every test, against real servers
	cargo nextest run --locked --workspace --no-fail-fast
