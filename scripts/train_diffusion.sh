#!/usr/bin/env bash
# Train the diffusion model on MNIST-M. Further flags are passed on.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
run -m diffusion.train "$@"
