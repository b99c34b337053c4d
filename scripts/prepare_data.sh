#!/usr/bin/env bash
# Build hw2_data from raw public files: bash scripts/prepare_data.sh --raw DIR [--out hw2_data] [--download]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
run -m common.prepare "$@"
