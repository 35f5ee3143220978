#!/usr/bin/env bash
# Fine-tune, check and export a model with the settings in config.ini beside this script:  ./run.sh [ARGUMENTS]
# ./run.sh --help lists them.
# Sets up first when .venv is not ready. stdout is for programs: one line, the run's directory.
set -euo pipefail

# A caller may have closed a stream; the next file that is opened would then take its place and be written over.
: 7>&2 || exec 2>/dev/null
{ : 7>&1; } 2>/dev/null || exec 1>/dev/null
{ : 7<&0; } 2>/dev/null || exec 0</dev/null

self=${BASH_SOURCE[0]}
while [ -L "$self" ]; do
    link=$(readlink "$self")
    case $link in /*) self=$link ;; *) self=$(dirname "$self")/$link ;; esac
done
case $self in /*) ;; *) self=$PWD/$self ;; esac
root=$(dirname "$self")
root=${root%/.}

unset PYTHONHOME PYTHONPATH # another Python's packages do not belong into ours
export PYTHONUTF8=1         # file names and settings are UTF-8, whatever the locale says

if ! "$BASH" "$root/setup.sh" --ready; then
    # A wrong setting is told now, not after ten minutes of set-up. Without a Python, setup.sh says all that is missing.
    if python=$("$BASH" "$root/setup.sh" --python); then
        for argument in "$@"; do
            case $argument in --help | -h) exec "$python" -B "$root/training/settings/command_line.py" "$@" ;; esac
        done
        "$python" -B "$root/training/settings/command_line.py" "$@"
    fi
    "$BASH" "$root/setup.sh"
fi
exec "$root/.venv/bin/python" "$root/training/finetune.py" "$@"
