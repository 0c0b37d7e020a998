# `make demo` and `make test` are all a newcomer needs; `make help` lists the rest.
SHELL := /bin/bash
CACHE := $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/sentistream
# Outside the clone, so that a fresh clone builds quickly where another was built before.
export CARGO_TARGET_DIR ?= $(CACHE)/target
export LIBTORCH ?= $(CACHE)/libtorch-2.11.0/torch
# `cargo test` alone skips, loudly, what needs a broker or DuckDB; make brings both and demands them.
TEST_ENV := SENTISTREAM_REQUIRE_BROKER=1 SENTISTREAM_TEST_DUCKDB=1 PYTHONPATH="$(CACHE)/duckdb-2.0.0"
DEMO_ARGS ?= --duration 60s
DATA ?= ../shared/data/tweets-en

.PHONY: help demo test test-processor setup lint doc build release model bench-label clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 26

setup: ## fetch ONNX Runtime (24 MB) into the user's cache
	@scripts/setup.sh runtime

demo: setup ## the whole path on generated posts, with an embedded broker; ends by itself
	cargo run --quiet --bin sentistream -- demo $(DEMO_ARGS)

test: ## every test, set-up included (processor and training share one build)
	@scripts/setup.sh runtime test training
	$(TEST_ENV) cargo test --workspace

test-processor: ## the processor's tests alone, without libtorch: unit, property, golden, CLI, real broker, DuckDB
	@scripts/setup.sh runtime test
	$(TEST_ENV) cargo test

build: setup ## the processor, development profile
	cargo build

release: setup ## the processor, optimised
	cargo build --release

lint: ## formatting and clippy, warnings denied
	@scripts/setup.sh training
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

doc: ## API documentation, warnings denied
	@scripts/setup.sh training
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

clean: ## remove build outputs from the user's cache (fetched libraries stay)
	rm -rf "$(CARGO_TARGET_DIR)"

RUN ?= $(CACHE)/runs/sentiment-en
model: ## train and export models/sentiment-en, all variants (DATA=folder with train.csv and valid.csv)
	@scripts/setup.sh runtime training
	@test -f "$(DATA)/train.csv" || { echo "$(DATA)/train.csv: no such file; name a folder with train.csv and valid.csv (columns text, label): make model DATA=…"; exit 1; }
	cargo run --release -p training -- finetune --base "$(CACHE)/base-models/all-MiniLM-L6-v2" \
	    --train "$(DATA)/train.csv" --valid "$(DATA)/valid.csv" --out "$(RUN)" --epochs 2 --batch-size 32 --lr 0.00005 \
	    --warmup 0.06 --weight-decay 0.01 --dropout 0.1 --pooling mean --class-weights sqrt --seed 42 --max-tokens 128 \
	    --device cpu --precision fp32 --threads 2 --eval-every 500 $(FINETUNE_ARGS)
	cargo run --release -p training -- export --model "$(RUN)" --valid "$(DATA)/valid.csv" --calibration "$(DATA)/train.csv" \
	    --out models/sentiment-en --name sentiment-en --languages en --variants fp32,int8,fp16 \
	    --base-model sentence-transformers/all-MiniLM-L6-v2 \
	    --data-note "Tweets of 2013 to 2016 labelled by people: SemEval-2017 task 4A, the pool that TweetEval sentiment splits into train and validation."
