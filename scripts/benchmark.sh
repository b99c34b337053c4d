#!/usr/bin/env bash
# Time this project's defaults against plain loops: bash scripts/benchmark.sh [--device cpu|cuda] [--quick]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
run -m scripts.benchmark "$@"
