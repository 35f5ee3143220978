#!/usr/bin/env bash
# The one test command:  tests/run.sh [arguments for pytest]
# Sets up, then lints, then three layers of tests, the quickest first; stops at the first part that fails.
# The first two layers run in a process a core; `-n 0` runs them in one, which -s and a debugger want.
# tests/run.sh --ollama [arguments for pytest] runs the tests against a real Ollama and no others: the `ollama` on the PATH, or
# OLLAMA=path, or several with colons between. It starts servers of its own, on free ports of this machine.
set -euo pipefail
{ : 7<&0; } 2>/dev/null || exec 0</dev/null

self=${BASH_SOURCE[0]}
case $self in /*) ;; *) self=$PWD/$self ;; esac
tests=$(dirname "$self")
root=$(dirname "$tests")
bin=$root/.venv/bin

unset PYTHONHOME PYTHONPATH
unset PYTHONDONTWRITEBYTECODE # else hundreds of processes compile the same files
export PYTHONUTF8=1

# part NAME COMMAND...: run it, say how long it took, stop here if it fails.
part() {
    local name=$1 started=$SECONDS code=0
    shift
    "$@" || code=$?
    printf '%s: %s, %d s\n' "$name" "$([ "$code" = 0 ] && echo passed || echo "FAILED (exit $code)")" "$((SECONDS - started))"
    [ "$code" = 0 ] || exit "$code"
}

# layer NAME MARKERS OPTIONS...: the tests with these markers. pytest's 5 means that arguments of the caller left none in this layer.
ran=0
layer() {
    local name=$1 marker=$2 started=$SECONDS code=0
    shift 2
    printf '\n%s:\n' "$name"
    "$bin/python" -m pytest --rootdir "$root" -c "$root/pyproject.toml" -m "$marker" "$@" || code=$?
    [ "$code" = 5 ] || ran=$((ran + 1))
    printf '%s: %d s\n' "$name" "$((SECONDS - started))"
    case $code in 0 | 5) ;; *) exit "$code" ;; esac
}

if [ "${1-}" = --ollama ]; then
    shift
    [ $# -gt 0 ] || set -- "$tests"
    if [ -z "${OLLAMA-}" ] && ! command -v ollama >/dev/null 2>&1; then
        echo "tests on a real Ollama: left out, for no ollama command is on the PATH and OLLAMA names none"
        exit 0
    fi
    part "set-up" "$BASH" "$root/setup.sh" --tests
    layer "tests on a real Ollama" "ollama" -n 0 --ollama -rs "$@"
    [ "$ran" != 0 ] || { echo "no test was run" >&2; exit 5; }
    exit 0
fi

[ $# -gt 0 ] || set -- "$tests"
part "set-up" "$BASH" "$root/setup.sh" --tests
part "ruff check" "$bin/python" -m ruff check --quiet "$root"
part "ruff format" "$bin/python" -m ruff format --quiet --check "$root"
part "mypy" "$bin/python" -m mypy --config-file "$root/pyproject.toml" --cache-dir "$root/.mypy_cache" "$root/training"
part "shellcheck" "$bin/shellcheck" "$root"/*.sh "$tests"/*.sh "$root/.ci/run"
layer "quick tests" "not slow and not tiny and not embedded and not ollama" -n auto --dist worksteal "$@"
layer "tests of programs and on a tiny model" "(slow or tiny) and not embedded and not ollama" -n auto --dist worksteal "$@"
layer "tests on the embedded model" "embedded and not ollama" "$@"
if [ "$ran" = 0 ]; then
    echo "no test was run" >&2
    exit 5
fi
