# Loupe: `make demo` shows it at work, `make test` runs every test. Both do their own set-up.

# One profile for everything: FAISS and SQLite are compiled once.
CARGO_FLAGS := --release --locked
STATE ?= var/demo

# A fresh clone lacks the bench peers' Python; `make bench` makes its own.
BENCH_VENV := .cache/bench-venv

.PHONY: help setup build demo test faults fuzz lint doc deny bench install clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: ## install system packages and ONNX Runtime
	@scripts/setup.sh run

build: setup ## compile the program
	@cargo build $(CARGO_FLAGS) --bin loupe

demo: build ## inspect the bundled samples (ONCE=1: once, with a summary)
	@ORT_DYLIB_PATH=$(CURDIR)/.cache/onnxruntime/libonnxruntime.so target/release/loupe demo --state $(STATE) $(if $(ONCE),--once)

test: ## run every test (installs PostgreSQL, ffmpeg and Chromium)
	@scripts/setup.sh test
	@if cargo nextest --version >/dev/null 2>&1; then cargo nextest run $(CARGO_FLAGS); else cargo test $(CARGO_FLAGS); fi

# A quarter of an hour on two cores; LOUPE_FAULT_SEED repeats a run.
FAULT_CYCLES ?= 1000

faults: ## kill, cut, fill and tear in the long run (FAULT_CYCLES=1000; docs/reliability.md)
	@scripts/setup.sh test
	@LOUPE_FAULT_CYCLES=$(FAULT_CYCLES) cargo test $(CARGO_FLAGS) --test faults -- --nocapture --test-threads=1

# Seconds for each target. The bundled SQLite has two tables of one name, which is no fault.
FUZZ_S ?= 60

fuzz: setup ## every fuzz target under AddressSanitizer (FUZZ_S=60; needs a nightly compiler and cargo-fuzz)
	@LOUPE_FUZZ_CORPUS=fuzz/corpus cargo test $(CARGO_FLAGS) --test fuzz
	@cp Cargo.lock fuzz/Cargo.lock
	@export ASAN_OPTIONS=detect_odr_violation=0; for target in $$(cargo +nightly fuzz list); do cargo +nightly fuzz run $$target -- -max_total_time=$(FUZZ_S) -max_len=65536 -timeout=20 -rss_limit_mb=4096 || exit 1; done

lint: setup ## formatting and clippy, warnings denied
	@cargo fmt --all --check
	@cargo clippy $(CARGO_FLAGS) --all-targets -- -D warnings

doc: setup ## the code's documentation, broken links denied
	@RUSTDOCFLAGS="-D warnings" cargo doc $(CARGO_FLAGS) --no-deps

deny: ## licences, bans, sources and advisories (needs cargo-deny and its advisory database)
	@cargo deny check

bench: build ## the pipeline against its Python peer on the same images, in one run
	@scripts/setup.sh test
	@test -x $(BENCH_VENV)/bin/python || python3 -m venv $(BENCH_VENV)
	@$(BENCH_VENV)/bin/pip install --quiet --disable-pip-version-check -r benches/peers/requirements.txt
	@$(BENCH_VENV)/bin/python benches/peers/compare.py

install: ## install the program, ONNX Runtime, models and the systemd unit (as root, after `make build`)
	@test -x target/release/loupe -a -e .cache/onnxruntime/libonnxruntime.so || { echo "install: run 'make build' first, as the user who has cargo" >&2; exit 1; }
	install -Dm755 target/release/loupe $(DESTDIR)/usr/bin/loupe
	install -Dm644 .cache/onnxruntime/libonnxruntime.so $(DESTDIR)/usr/lib/loupe/libonnxruntime.so
	cd models && find . -type f -exec install -Dm644 {} $(DESTDIR)/usr/share/loupe/models/{} \;
	install -Dm644 README.md $(DESTDIR)/usr/share/doc/loupe/README.md
	install -Dm644 systemd/loupe.service $(DESTDIR)/usr/lib/systemd/system/loupe.service
	test -e $(DESTDIR)/etc/loupe/loupe.toml || install -Dm644 config/loupe.example.toml $(DESTDIR)/etc/loupe/loupe.toml

clean: ## remove what the demo made
	rm -rf var
