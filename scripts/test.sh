#!/usr/bin/env bash
# Run the test suite; on a fresh clone this first makes .venv and installs requirements.txt.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$project"
run -m pytest tests/ "$@"
