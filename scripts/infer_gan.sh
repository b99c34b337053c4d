#!/usr/bin/env bash
# Draw 1000 faces into a folder: bash scripts/infer_gan.sh OUT
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
run -m gan.inference "$@"
