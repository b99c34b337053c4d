#!/usr/bin/env bash
# Train the four rows of the table, source / DANN / plus / target, for one pair: MNIST-M -> USPS unless --target
# says otherwise. Further flags go to all four.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
for row in "source" "dann --recipe plain" "dann --recipe plus" "target"; do
    run -m dann.train --source mnistm --target usps --mode $row "$@"
done
