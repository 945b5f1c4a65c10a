#!/bin/sh
# Runs every fuzz target of the module, one after the other, for $FUZZ each.
set -eu
cd "$(dirname "$0")/.."
grep -rlE '^func Fuzz' --include='*_test.go' --exclude-dir=e2e --exclude-dir=tools . | sort | while read -r file; do
	dir=$(dirname "$file")
	for target in $(sed -nE 's/^func (Fuzz[A-Za-z0-9_]*)\(.*/\1/p' "$file"); do
		echo "== $dir $target"
		"${GO:-go}" test -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZ:-1m}" -fuzzminimizetime 20x "$dir"
	done
done
