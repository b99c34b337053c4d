#!/usr/bin/env bash
# Predict the digits of a folder: bash scripts/infer_dann.sh TEST_DIR OUT.csv
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
run -m dann.inference "$@"
