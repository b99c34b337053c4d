# Sourced by every script: finds or makes the environment and defines `run`.
# An active environment, virtual or of conda, is used as it is; otherwise .venv in the project, made on first use.
set -euo pipefail

project="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
fail() { echo "error: $1" >&2; exit 2; }

active="${VIRTUAL_ENV:-}"
[[ -n "$active" || "${CONDA_DEFAULT_ENV:-base}" == base ]] || active="${CONDA_PREFIX:-}"
if [[ -n "$active" ]]; then
    python="$active/bin/python"
    # Looked up, not imported: that would cost every command some seconds.
    note="$("$python" -c "if True:
        import sys
        from importlib.metadata import version
        from importlib.util import find_spec
        if not all(map(find_spec, sys.argv[1:])):
            sys.exit(1)
        if not (2, 11) <= tuple(map(int, version('torch').split('.')[:2])) <= (2, 12):
            print('note: the active environment has PyTorch', version('torch') + '; tested are 2.11 to 2.12')" \
        torch torchvision sklearn matplotlib tqdm pytest xdist hypothesis 2>/dev/null)" \
        || fail "the active environment $active lacks packages: pip install -r $project/requirements.txt"
    [[ -z "$note" ]] || echo "$note" >&2
else
    python="$project/.venv/bin/python"
    # The copy is written last, so an interrupted or outdated installation is taken up again.
    if ! cmp -s "$project/requirements.txt" "$project/.venv/installed.txt"; then
        python3 -c "import sys; sys.exit(sys.version_info < (3, 11))" \
            || fail "Python 3.11 or newer is needed, python3 is $(python3 --version 2>&1)"
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

# End at once on a flag of which only one of a script's trainings can make sense: refuse "--flag ..." COMMAND ARG ...
refuse() {
    local flag words=" ${*:3} "
    words="${words/ --resume[ =]auto / }"  # suits all
    for flag in $1 --resume; do
        [[ "$words" != *" $flag"[\ =]* ]] || fail "$flag is for one of the networks that this script trains: use $2"
    done
}
