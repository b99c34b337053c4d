# Sourced by every script: finds or makes the virtual environment and defines `run`.
# An active virtual environment is used as it is; otherwise .venv in the project, made on first use.
set -euo pipefail

project="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

if [[ -n "${VIRTUAL_ENV:-}" ]]; then
    python="$VIRTUAL_ENV/bin/python"
    # Looked up, not imported: that would cost every command some seconds.
    if ! "$python" -c "import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, sys.argv[1:])))" \
        torch torchvision sklearn matplotlib tqdm pytest 2>/dev/null; then
        echo "error: the active environment $VIRTUAL_ENV lacks packages: pip install -r $project/requirements.txt" >&2
        exit 2
    fi
else
    python="$project/.venv/bin/python"
    # The copy is written last, so an interrupted or outdated installation is taken up again.
    if ! cmp -s "$project/requirements.txt" "$project/.venv/installed.txt"; then
        if ! python3 -c "import sys; sys.exit(sys.version_info < (3, 11))"; then
            echo "error: Python 3.11 or newer is needed, python3 is $(python3 --version 2>&1)" >&2
            exit 2
        fi
        echo "+ python3 -m venv $project/.venv && pip install -r requirements.txt (once, about 5 GB)"
        python3 -m venv "$project/.venv"
        "$python" -m pip install --quiet --disable-pip-version-check -r "$project/requirements.txt"
        cp "$project/requirements.txt" "$project/.venv/installed.txt"
    fi
fi

# Modules are found from any working directory; paths that you type mean what they mean where you stand.
export PYTHONPATH="$project${PYTHONPATH:+:$PYTHONPATH}"

# Print a command, then run it with the environment's Python.
run() {
    echo "+ python $*" >&2
    "$python" "$@"
}
