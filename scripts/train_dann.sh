#!/usr/bin/env bash
# Train the four rows of the table, source / DANN / plus / target, for one pair: MNIST-M -> USPS unless --target
# says otherwise. Further flags go to all four. --resume auto goes on where they stopped.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
refuse "--mode --recipe --out --no-adversary --no-teacher" "python -m dann.train --mode source|dann|target" "$@"
for row in "source" "dann --recipe plain" "dann --recipe plus" "target"; do
    run -m dann.train --source mnistm --target usps --mode $row "$@"
done
