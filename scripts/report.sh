#!/usr/bin/env bash
# Rebuild tables, numbers and pictures of the report and the README: bash scripts/report.sh [--check|--text] [--data DIR]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
run -m scripts.report "$@"
