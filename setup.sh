#!/usr/bin/env bash
# Make .venv beside this script ready for training:  ./setup.sh [--service | --tests | --ready | --python | --help]
# Re-runnable: a finished set-up is checked in seconds, a half-finished one is made anew. Everything is said on stderr.
#
#   PYTHON=python3.12      the Python to use (default: the first of python3, python3.13 ... python3.10 that fits)
#   TORCH_INDEX_URL=URL    where PyTorch's builds are (default: PyTorch's own index for the CPU, ROCm or XPU; pip's for CUDA)
#   ENGINE=unsloth         the GPU packages, though no card is seen; ENGINE=transformers: keep those installed before
#   XDG_CACHE_HOME=DIR     llama.cpp is built once a machine and kept there (default: ~/.cache)
set -euo pipefail

# A caller may have closed a stream; the next file that is opened would then take its place.
: 7>&2 || exec 2>/dev/null
exec </dev/null
# 3: for --python and --help only
if { : 7>&1; } 2>/dev/null; then exec 3>&1; else exec 3>/dev/null; fi
exec 1>&2

self=${BASH_SOURCE[0]}
while [ -L "$self" ]; do
    link=$(readlink "$self")
    case $link in /*) self=$link ;; *) self=$(dirname "$self")/$link ;; esac
done
case $self in /*) ;; *) self=$PWD/$self ;; esac
root=$(dirname "$self")
root=${root%/.}
venv=$root/.venv
requirements=$root/requirements
system=$root/training/system
# Portable, for a native build takes llama.cpp's AMX path, which crashes on models with a hidden size such as 576; and
# without the vision tools, which take a third of the time to build.
llama_flags="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF"

# What a caller's environment may carry that would put packages elsewhere, or others' packages into our venv.
unset PYTHONHOME PYTHONPATH PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV
export PYTHONUTF8=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { printf 'setup: %s\n' "$*"; }
has_command() { command -v "$1" >/dev/null 2>&1; }

# Sets `python` to the first that serves, or `python_why` to the reasons.
find_python() {
    python="" python_why=""
    local name path why
    for name in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.10; do
        if path=$(command -v "$name" 2>/dev/null); then
            why=$("$path" -B "$system/serving_python.py" 2>/dev/null) || why="does not run"
            if [ -z "$why" ]; then
                python=$path
                return
            fi
            [ "$why" = "does not run" ] || python_why="$python_why; $path $why"
        elif [ -n "${PYTHON:-}" ]; then
            why="is not there"
        fi
        if [ -n "${PYTHON:-}" ]; then
            python_why="; PYTHON=$PYTHON $why"
            break
        fi
    done
    python_why=${python_why#; }
}

# Whose card is here: nvidia, amd, intel, or nothing. The driver's own tool must list one.
gpu_kind() {
    if has_command nvidia-smi && [ -n "$(nvidia-smi -L 2>/dev/null || true)" ]; then
        echo nvidia
    elif has_command rocminfo && rocminfo 2>/dev/null | grep 'Name: *gfx' >/dev/null; then
        echo amd
    elif has_command xpu-smi && xpu-smi discovery 2>/dev/null | grep 'Device Name' >/dev/null; then
        echo intel
    fi
}

# The packages that are wanted: cpu or gpu. Those of a GPU stay once they are there.
wanted_variant() {
    local here=cpu
    [ -z "$(gpu_kind)" ] || here=gpu
    case ${ENGINE:-} in
    unsloth) echo gpu ;;
    transformers) if [ -f "$venv/.ready" ]; then sed -n 's/^variant //p' "$venv/.ready"; else echo "$here"; fi ;;
    *) if grep -qx 'variant gpu' "$venv/.ready" 2>/dev/null; then echo gpu; else echo "$here"; fi ;;
    esac
}

# What the stamp of a finished set-up says; another text means that something is to be done.
stamp() {
    local sum
    sum=$( (cat "$requirements"/[a-ru-z]*.txt && printf '%s' "$llama_flags") | cksum)
    printf 'variant %s\nrequirements %s\n' "$1" "$sum"
}

is_ready() {
    [ -x "$venv/bin/python" ] && [ -f "$venv/.ready" ] && [ "$(cat "$venv/.ready")" = "$(stamp "$(wanted_variant)")" ]
}

# The folder that keeps the builds of llama.cpp: one for each version, machine, C library and set of flags.
wheel_folder() {
    local base=${XDG_CACHE_HOME:-} home='import pathlib; print(pathlib.Path.home() / ".cache")' libc version
    [ -n "$base" ] || base=${HOME:+$HOME/.cache}
    # Without HOME, the folder that the system knows.
    [ -n "$base" ] || base=$("${python:-python3}" -c "$home" 2>/dev/null) || base=${TMPDIR:-/tmp}
    libc=$(getconf GNU_LIBC_VERSION 2>/dev/null | tr ' ' '-') || libc=libc
    version=$(sed -n 's/^llama-cpp-python==\([^ ]*\).*/\1/p' "$requirements/llama.txt")
    printf '%s/finetune-to-ollama/wheels/llama-cpp-python-%s-%s-%s-%s-%s' "$base" \
        "$version" "$(uname -s)" "$(uname -m)" "$libc" "$(printf '%s' "$llama_flags" | cksum | cut -d ' ' -f 1)"
}

has_wheel() {
    local wheel
    for wheel in "$(wheel_folder)"/llama_cpp_python-*.whl; do [ -s "$wheel" ] && return; done
    return 1
}

# compiles COMPILER LANGUAGE FLAG: does it take a file with the language's own headers?
compiles() {
    has_command "$1" || return 1
    local header='<stdio.h>'
    [ "$2" = c ] || header='<filesystem>'
    printf '#include %s\nint main(void) { return 0; }\n' "$header" | "$1" "$3" -fsyntax-only -x "$2" - >/dev/null 2>&1
}

# Name everything that the machine lacks at once, with the line that would help.
check_machine() {
    local problems=() apt=() dnf=() need=3000 free version why variant
    find_python
    variant=$(wanted_variant)
    if [ -z "$python" ]; then
        problems+=("no Python 3.10 to 3.13${python_why:+ ($python_why)}")
        apt+=(python3 python3-venv) dnf+=(python3.12)
    else
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            problems+=("$python has no venv module (ensurepip)")
            apt+=("python$version-venv") dnf+=("python$version")
        fi
        [ "$variant" = cpu ] || need=14000
        free=$("$python" -c 'import shutil, sys; print(shutil.disk_usage(sys.argv[1]).free >> 20)' "$root")
        if ! is_ready && [ ! -d "$venv/lib" ] && [ "$free" -lt "$need" ]; then
            problems+=("too little disk: $root needs $need MiB, $free MiB are free")
        fi
        if [ "$variant" = gpu ] && ! is_ready; then
            why=$("$python" -B "$system/torch_builds.py" problem "$(gpu_kind)")
            [ -z "$why" ] || problems+=("$why")
        fi
    fi
    [ -w "$root" ] || problems+=("$root cannot be written to, and .venv belongs there")
    if ! has_wheel; then
        if ! compiles "${CC:-cc}" c -std=c11; then
            problems+=("no C compiler (${CC:-cc}) for llama.cpp")
            apt+=(build-essential) dnf+=(gcc make)
        fi
        if ! compiles "${CXX:-c++}" c++ -std=c++17; then
            problems+=("no C++17 compiler (${CXX:-c++}) for llama.cpp")
            case " ${apt[*]-} " in *" build-essential "*) ;; *) apt+=(build-essential) ;; esac
            dnf+=(gcc-c++)
        fi
    fi
    [ ${#problems[@]} -gt 0 ] || return 0
    say "this machine is not ready:"
    printf '  %s\n' "${problems[@]}"
    if [ ${#apt[@]} -gt 0 ]; then
        printf '  Debian, Ubuntu:  sudo apt-get install -y %s\n' "${apt[*]}"
        printf '  Fedora, RHEL:    sudo dnf install -y %s\n' "${dnf[*]}"
        [ "$(uname -s)" != Darwin ] || printf '  macOS:           xcode-select --install; brew install python@3.12\n'
    fi
    exit 3
}

with_service=false
with_tests=false
case ${1:-} in
"") ;;
--tests) with_tests=true ;;
--service) with_service=true ;;
--ready) if is_ready; then exit 0; else exit 3; fi ;;
--python)
    find_python
    [ -n "$python" ] || exit 3
    printf '%s\n' "$python" >&3
    exit 0
    ;;
--help | -h)
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$self" >&3
    exit 0
    ;;
*)
    say "unknown argument: $1 (--service, --tests, --ready, --python or --help)"
    exit 2
    ;;
esac

started=$(date +%s)
check_machine
# One set-up at a time. The lock is on this very file; the other set-up may have changed what is wanted.
exec 9<"$self"
"$python" -B "$system/setup_lock.py"
variant=$(wanted_variant)
set -- --python "$python" --variant "$variant" --card "$(gpu_kind)" --stamp "$(stamp "$variant")" \
    --llama-flags="$llama_flags" --wheels "$(wheel_folder)" --started "$started"
[ "$with_service" = false ] || set -- "$@" --service "$(cksum <"$requirements/service.txt")"
[ "$with_tests" = false ] || set -- "$@" --tests "$(cat "$requirements/service.txt" "$requirements/test.txt" | cksum)"
exec "$python" -B "$system/set_up.py" "$@"
