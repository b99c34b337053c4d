#!/usr/bin/env bash
# Train both face models, DCGAN (method A) and SAGAN (method B). Further flags go to both.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
run -m gan.train --model dcgan "$@"
run -m gan.train --model sagan "$@"
