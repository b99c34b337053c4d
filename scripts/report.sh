#!/usr/bin/env bash
# Rebuild text, numbers and pictures of README and report: bash scripts/report.sh [--check|--text] [--data DIR]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
run -m scripts.report "$@"
