#!/usr/bin/env bash
# Run the test suite; on a fresh clone this first makes .venv and installs requirements.txt.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$project"
# Most tests are too small for two threads, so there are two processes instead; but only one has the GPU.
[[ " $* " == *" --device"[\ =]"cuda "* ]] || set -- --numprocesses 2 --dist worksteal "$@"
OMP_NUM_THREADS=1 run -m pytest tests/ "$@"
