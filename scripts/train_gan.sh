#!/usr/bin/env bash
# Train DCGAN (method A), then SAGAN (method B). Flags go to both: --width is a multiple of 8. --resume auto goes on.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
refuse "--model --out --no-attention" "python -m gan.train --model dcgan|sagan" "$@"
run -m gan.train --model dcgan "$@"
run -m gan.train --model sagan "$@"
