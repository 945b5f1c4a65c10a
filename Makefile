# Everything that the project does, by name. `make check` is what CI runs.
GO      ?= go
ARGS    ?=
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X github.com/gonka-mesh/mesh.Version=$(VERSION)
TOOL     = $(GO) tool -modfile=tools/go.mod
FUZZ    ?= 1m
export CGO_ENABLED ?= 0

.PHONY: run build test race lint fuzz bench sim e2e peers bench-peers generate check cross
run: build          ## a whole network on this machine: make run ARGS='--once "What is Mesh?"'
	@bin/mesh dev $(ARGS)

build:              ## bin/mesh
	@mkdir -p bin
	@$(GO) build -ldflags '$(LDFLAGS)' -o bin/mesh ./cmd/mesh

test:               ## unit, transcripts, virtual time and short process tests
	$(GO) test -timeout 10m ./...

# testing/synctest crashes under the race detector where two processors fire the
# timers of one bubble (golang/go#78156): packages that live by it run on one. The
# detector judges by order and not by time, so it finds races there as well.
race:               ## what is concurrent, under the race detector (needs gcc)
	CGO_ENABLED=1 $(GO) test -race -short -timeout 20m -cpu 1 ./p2p/... ./inference/host ./inference/router ./inference/openai ./inference/gpu
	CGO_ENABLED=1 $(GO) test -race -short -timeout 20m ./inference/native ./inference/receipts ./node ./consensus ./consensus/state ./consensus/light

lint:               ## gofmt, go vet, golangci-lint as .golangci.yml says
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(TOOL) golangci-lint run --max-issues-per-linter 0 --max-same-issues 0 ./...

fuzz:               ## every fuzz target for FUZZ (1m)
	@GO=$(GO) FUZZ=$(FUZZ) sh tools/fuzz.sh

bench: build        ## benchmarks of this machine; docs/bench.md explains them
	bin/mesh bench $(ARGS)
	$(GO) test -run '^$$' -bench . ./inference/kernel ./p2p/blob

sim:                ## large meshes in virtual time (minutes)
	MESH_SIM=1 $(GO) test -count=1 -v -timeout 60m -run 'TestSim' ./node/sim

e2e: build          ## the official OpenAI SDKs (Go, Node) against real processes
	MESH_BIN=$(CURDIR)/bin/mesh sh e2e/run.sh

peers:              ## what the engine computes beside llama.cpp's own libraries (linux/amd64; gcc, npm)
	@sh peers/run.sh test

bench-peers:        ## and how fast: make bench-peers ARGS='--rounds 3'
	@sh peers/run.sh bench $(ARGS)

generate:           ## protobuf code (needs protoc 3.21 or later) and assembly
	$(GO) build -o bin/protoc-gen-go google.golang.org/protobuf/cmd/protoc-gen-go
	protoc --plugin=bin/protoc-gen-go --go_out=. --go_opt=paths=source_relative inference/inferencepb/inference.proto p2p/p2ppb/p2p.proto consensus/ledger/ledgerpb/ledger.proto consensus/light/lightpb/light.proto
	$(GO) generate ./...

cross:              ## the platforms that we build for, without cgo
	@for p in linux/amd64 linux/arm64 darwin/arm64; do echo "build $$p"; \
	  GOOS=$${p%/*} GOARCH=$${p#*/} $(GO) build -o /dev/null ./cmd/mesh || exit 1; done

check: lint cross test race e2e peers ## what CI runs
