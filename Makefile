# Everything a developer or a machine runs. Needs root on Debian 12 (or like it) and a Rust toolchain;
# what else is missing is installed. `make help` lists the targets.

CARGO ?= cargo
WITH := tests/env/with --images

# Whole-system tests share one machine: more of them at once would only wait for each other.
TEST_THREADS ?= 2

SHELL_SCRIPTS := .ci/run tests/env/lib.sh tests/env/install tests/env/service tests/env/up tests/env/down tests/env/with tests/images/build deploy/container/build deploy/container/base deploy/container/init.sh

.DEFAULT_GOAL := help
.PHONY: help build release demo test test-unit test-system test-residue bench lint install clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: ## Install what this machine lacks (Debian packages, Kafka, the store; cached outside the tree)
	tests/env/install

build: install ## Build everything, for debugging
	$(CARGO) build --workspace --all-targets

release: install ## Build the program, optimised: target/release/rewind
	$(CARGO) build --release -p rewind-invoker

demo: install ## Show it: 50 requests plant and look for secrets, with plain reuse and with rewind
	$(CARGO) build --release -p rewind-invoker --bin rewind
	$(CARGO) build --release -p rewind-tests --bin demo
	$(WITH) -- target/release/demo

test: test-unit test-system ## All tests: units, then the whole system with real Kafka, store and containers

test-unit: install ## The tests of the crates
	$(WITH) zookeeper kafka couchdb docker -- $(CARGO) test --workspace --exclude rewind-tests --no-fail-fast

test-system: install ## The whole-system tests
	$(WITH) zookeeper prometheus kafka couchdb docker -- $(CARGO) test -p rewind-tests --no-fail-fast -- --test-threads=$(TEST_THREADS)

test-residue: install ## Every residue attack from Python, Node and native code, as a table
	$(WITH) -- $(CARGO) test -p rewind-tests --test residue -- --nocapture --test-threads=1

bench: install ## The figures, optimised build, medians as a table, raw data below target/bench
	$(CARGO) build --release -p rewind-invoker --bin rewind
	$(CARGO) build --release -p rewind-benches --bins
	target/release/rewind-micro
	$(WITH) -- target/release/rewind-bench $(BENCH)

lint: install ## Formatting, lints, documentation, scripts
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items
	shellcheck -x -P SCRIPTDIR $(SHELL_SCRIPTS)
	go=$$(cat "$${REWIND_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/rewind}/go"); \
	for module in tests/images/actionloop tests/dependencies/goroutines; do (cd $$module && "$$go" vet ./...) || exit 1; done
	for file in tests/images/node/*.js tests/*/*.js; do node --check "$$file" || exit 1; done

clean: ## Remove what was built; the cache of downloads stays
	$(CARGO) clean
