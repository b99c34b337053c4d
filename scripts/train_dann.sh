#!/usr/bin/env bash
# Train the three rows of the table, source / DANN / target, for one pair: MNIST-M -> USPS unless --target says
# otherwise. Further flags go to all three.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
for mode in source dann target; do
    run -m dann.train --source mnistm --target usps --mode "$mode" "$@"
done
