# Manta. The two commands to know: make run, make test.

GO        ?= go
BIN       := bin/manta
VERSION   := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS   := -s -w -X manta/internal/version.Version=$(VERSION)
STATIC    := honnef.co/go/tools/cmd/staticcheck@v0.8.2
PKGS      := ./...
TEST_TAGS := e2e,upgrade,helm,kubernetes
FUZZTIME  ?= 10s
GOLDEN_DIR ?= ../shared/golden

export CGO_ENABLED := 0

.DEFAULT_GOAL := help

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: build ## serve SmolLM2 on http://127.0.0.1:8000 (make run ARGS="MODEL --flags")
	@$(BIN) up $(ARGS)

build: toolchain ## build bin/manta
	@$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) .

test: toolchain ## run every test that this machine can run
	$(GO) test -timeout 20m $(PKGS)

race: toolchain ## the tests again, under the race detector (needs a C compiler)
	CGO_ENABLED=1 $(GO) test -race -timeout 40m $(PKGS)

check: toolchain ## gofmt, go.mod, vet, staticcheck, house rules
	@unformatted=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
	  if [ -n "$$unformatted" ]; then echo "not gofmt-ed:"; echo "$$unformatted"; exit 1; fi
	$(GO) mod tidy -diff
	$(GO) vet $(PKGS)
	$(GO) vet -tags $(TEST_TAGS) ./deploy/...
	cd kernels/cpu/gen && $(GO) vet ./...
	$(GO) run $(STATIC) $(PKGS)
	$(GO) run $(STATIC) -tags $(TEST_TAGS) ./deploy/...
	cd kernels/cpu/gen && $(GO) run $(STATIC) ./...
	$(GO) run ./internal/check
	GOOS=darwin GOARCH=arm64 $(GO) vet .
	GOOS=windows $(GO) build -o /dev/null .

golden: toolchain ## run the references in GOLDEN_DIR (default ../shared/golden)
	GOLDEN_DIR=$(abspath $(GOLDEN_DIR)) $(GO) test -count=1 -timeout 60m -run Golden -json $(PKGS) | $(GO) run ./internal/golden

fuzz: toolchain ## run each fuzz target for FUZZTIME (default 10s)
	@$(GO) list -f '{{.Dir}} {{.ImportPath}}' $(PKGS) | while read -r dir pkg; do \
	  for target in $$(grep -ho '^func Fuzz[A-Za-z0-9_]*' $$dir/*_test.go 2>/dev/null | cut -c6-); do \
	    echo "$$pkg $$target"; \
	    $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
	  done; done

bench: build ## measure this machine: kernels, tokens, stage hops and pipelines, then serving through HTTP
	$(GO) test -run '^$$' -bench . -benchtime 1s ./kernels/... ./runtime/token ./parallel/link ./node/device
	@$(BIN) bench --self

bench-peers: build ## measure beside llama.cpp, which it builds once (python3, cmake, a C++ compiler)
	@$(GO) run ./internal/peers $(ARGS)

e2e: build ## clients, faults and processes against the real program
	MANTA_BINARY=$(abspath $(BIN)) $(GO) test -count=1 -p 1 -timeout 30m -tags e2e ./deploy/e2e/...

e2e-full: build ## the full counts of the cluster's faults: about an hour, on a calm machine
	MANTA_BINARY=$(abspath $(BIN)) $(GO) test -count=1 -timeout 120m -tags e2e ./deploy/e2e/cluster -v \
	  -run 'KillMatrix|LeaderKills|Heads|Starved|Work|Drain|Rolling|Scale|Histories' -strict -rounds 20 -kills 200 -history 2m -batch-lines 2000 -batch-kills 20
	MANTA_BINARY=$(abspath $(BIN)) $(GO) test -count=1 -timeout 60m -tags e2e ./deploy/e2e/scale -v -run Users -strict -overload 10m

SOAK ?= 30m
soak: build ## SOAK (default 30m) of faults every 10 s, then leak checks
	MANTA_BINARY=$(abspath $(BIN)) $(GO) test -count=1 -timeout 300m -tags e2e ./deploy/e2e/cluster -v -run Soak -soak $(SOAK)

BASE ?= $(shell git describe --tags --abbrev=0 2>/dev/null || git rev-parse HEAD~1)
e2e-upgrade: build ## a cluster of BASE (the last tag, or the commit before) is upgraded under load
	@rm -rf bin/base && mkdir -p bin/base && git archive $(BASE) | tar -x -C bin/base
	cd bin/base && $(GO) build -trimpath -o ../manta-base . && cd .. && rm -rf base
	MANTA_BINARY=$(abspath $(BIN)) MANTA_BASE_BINARY=$(abspath bin/manta-base) \
	  $(GO) test -count=1 -timeout 30m -tags e2e,upgrade ./deploy/e2e/cluster -v -run Upgrade

bench-scale: build ## what three heads cost, from 1 to 64 simulated nodes (SCALE="-nodes 1,4 -streams 64")
	MANTA_BINARY=$(abspath $(BIN)) $(GO) test -count=1 -timeout 60m -tags e2e -v ./deploy/e2e/scale -run Scale $(or $(SCALE),-nodes 1,4,16,64 -streams 512 -length 20s)

toolchain:
	@command -v $(GO) >/dev/null || { echo "Go 1.26 or later is needed: https://go.dev/dl"; exit 1; }

-include cuda.mk deploy/deploy.mk

.PHONY: help run build test race check golden fuzz bench bench-peers bench-scale e2e e2e-full soak e2e-upgrade toolchain
