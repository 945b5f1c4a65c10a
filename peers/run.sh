#!/bin/sh
# The native engine beside llama.cpp's own libraries: `run.sh test` compares what
# they compute, `run.sh bench [ARGS]` how fast. Needs Go, gcc and npm on linux/amd64.
set -eu
cd "$(dirname "$0")"
what=$1
shift
npm ci --loglevel error >/dev/null
lib=node_modules/@node-llama-cpp/linux-x64/bins/linux-x64
mkdir -p bin
gcc -O2 -Wall -Wextra -o bin/llamacpp llamacpp/llamacpp.c "$lib"/libllama.v*.so "$lib"/libggml.v*.so \
	-Wl,-rpath,"$PWD/$lib" -Wl,--allow-shlib-undefined
"${GO:-go}" build -o bin/engine ./engine
case $what in
test) "${GO:-go}" test -count=1 -v -timeout 20m ./... ;;
bench)
	(cd .. && "${GO:-go}" build -o peers/bin/mesh ./cmd/mesh)
	"${GO:-go}" run . "$@"
	;;
*) echo "run.sh: $what: want test or bench" >&2; exit 2 ;;
esac
