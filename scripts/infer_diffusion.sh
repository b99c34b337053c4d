#!/usr/bin/env bash
# Draw 1000 digits into a folder: bash scripts/infer_diffusion.sh OUT
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
run -m diffusion.inference "$@"
