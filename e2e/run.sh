#!/bin/sh
# The official OpenAI SDKs, Go and Node, against real mesh processes.
# MESH_BIN names the binary (default: bin/mesh of this checkout).
set -eu
cd "$(dirname "$0")"
MESH_BIN=${MESH_BIN:-$PWD/../bin/mesh}
export MESH_BIN
[ -x "$MESH_BIN" ] || { echo "e2e: $MESH_BIN is not there; run: make build" >&2; exit 1; }

"${GO:-go}" vet ./...
"${GO:-go}" test -count=1 -timeout 10m ./...

if ! command -v npm >/dev/null; then
	echo "e2e: npm is not there; install Node 22 or later to run the Node SDK's tests" >&2
	exit 1
fi
cd node
npm ci --ignore-scripts --no-audit --no-fund --loglevel error
node --test
