#!/usr/bin/env bash
# Make .venv beside this script ready for training:  ./setup.sh [--tests | --ready | --python | --help]
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
if { : 7>&1; } 2>/dev/null; then exec 3>&1; else exec 3>/dev/null; fi # 3: for --python and --help only
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
cache_name=finetune-to-ollama
torch_builds=https://download.pytorch.org/whl
torch_cuda=13.0 # what PyPI's build of the pinned torch is made for (its requirement cuda-toolkit says so)
cuda13_driver=580 # the first driver that serves CUDA 13
# Portable, for a native build takes llama.cpp's AMX path, which crashes on models with a hidden size such as 576; and
# without the vision tools, which take a third of the time to build.
llama_flags="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF"

# What a caller's environment may carry that would put packages elsewhere, or others' packages into our venv.
unset PYTHONHOME PYTHONPATH PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV
export PYTHONUTF8=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { printf 'setup: %s\n' "$*"; }
fail() {
    say "$@"
    exit 3
}

# Why a Python does not serve, in one line; nothing when it does.
python_problem() {
    local answer
    # shellcheck disable=SC2016  # Python's own text
    answer=$("$1" -c '
import struct, sys
version = "%d.%d" % sys.version_info[:2]
if not (3, 10) <= sys.version_info[:2] <= (3, 13):
    print("is Python %s; 3.10 to 3.13 serve" % version)
elif struct.calcsize("P") != 8:
    print("is a 32-bit Python; PyTorch needs 64 bits")
else:
    missing = []
    for name in ("ctypes", "ssl", "zlib", "bz2", "lzma"):
        try:
            __import__(name)
        except ImportError:
            missing.append(name)
    if missing:
        print("was built without %s" % ", ".join(missing))
' 2>/dev/null) || answer="does not run"
    printf '%s' "$answer"
}

# Sets `python` to the first that serves, or `python_why` to the reasons.
find_python() {
    python="" python_why=""
    local name path why
    for name in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.10; do
        if path=$(command -v "$name" 2>/dev/null); then
            why=$(python_problem "$path")
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

has_command() { command -v "$1" >/dev/null 2>&1; }

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
has_gpu() { [ -n "$(gpu_kind)" ]; }

# The index of PyTorch's builds: the caller's, else what the machine asks for; nothing where pip's own has the right one.
torch_index() {
    local kind version
    if [ -n "${TORCH_INDEX_URL:-}" ]; then
        echo "$TORCH_INDEX_URL"
    elif [ "$(wanted_variant)" = cpu ]; then
        echo "$torch_builds/cpu"
    else
        kind=$(gpu_kind)
        case $kind in
        amd)
            version=$(sed -n 's/^\([0-9]*\.[0-9]*\).*/\1/p' "${ROCM_PATH:-/opt/rocm}/.info/version" 2>/dev/null || true)
            [ -z "$version" ] || echo "$torch_builds/rocm$version"
            ;;
        intel) echo "$torch_builds/xpu" ;;
        esac
    fi
}

# Why PyTorch's build would not run on the card that is here; nothing where it would, or nothing can be said.
card_problem() {
    local kind said cuda driver wheel=$torch_cuda
    kind=$(gpu_kind)
    if [ "$kind" = amd ] && [ -z "$(torch_index)" ]; then
        printf 'an AMD card is here, and which ROCm is not known (%s): name the index of its builds, as in TORCH_INDEX_URL=%s/rocm7.0 ./setup.sh' \
            "no ${ROCM_PATH:-/opt/rocm}/.info/version" "$torch_builds"
    fi
    [ "$kind" = nvidia ] || return 0
    case ${TORCH_INDEX_URL:-} in
    */cu[0-9]*) wheel=$(printf '%s' "${TORCH_INDEX_URL%/}" | sed -n 's|.*/cu\([0-9]*\)\([0-9]\)$|\1.\2|p') ;;
    */*) return 0 ;;
    esac
    said=$(nvidia-smi 2>/dev/null || true)
    cuda=$(printf '%s\n' "$said" | sed -n 's/.*CUDA \(UMD \)\{0,1\}Version: *\([0-9]*\.[0-9]*\).*/\2/p' | head -n 1)
    driver=$(printf '%s\n' "$said" | sed -n 's/.*Driver Version: *\([0-9.]*\).*/\1/p' | head -n 1)
    # Within one major version of CUDA an older driver serves newer builds.
    if [ -n "$cuda" ] && [ -n "$wheel" ] && [ "${cuda%%.*}" -lt "${wheel%%.*}" ]; then
        printf 'the driver (%s) serves CUDA %s, PyTorch is built for CUDA %s: install driver %s or newer, or take a build for this one: TORCH_INDEX_URL=%s/cu126 ./setup.sh' \
            "${driver:-version unknown}" "$cuda" "$wheel" "$cuda13_driver" "$torch_builds"
    fi
}

wanted_variant() {
    case ${ENGINE:-} in
    unsloth) echo gpu ;;
    transformers) if [ -f "$venv/.ready" ]; then sed -n 's/^variant //p' "$venv/.ready"; elif has_gpu; then echo gpu; else echo cpu; fi ;;
    *) if has_gpu || grep -qx 'variant gpu' "$venv/.ready" 2>/dev/null; then echo gpu; else echo cpu; fi ;;
    esac
}

# What the stamp of a finished set-up says; another text means that something is to be done.
stamp() {
    local sum
    sum=$( (cat "$requirements"/[a-su-z]*.txt && printf '%s' "$llama_flags") | cksum)
    printf 'variant %s\nrequirements %s\n' "$1" "$sum"
}
tests_stamp() { cksum <"$requirements/test.txt"; }

is_ready() {
    [ -x "$venv/bin/python" ] && [ -f "$venv/.ready" ] && [ "$(cat "$venv/.ready")" = "$(stamp "$(wanted_variant)")" ]
}
tests_are_ready() { [ -f "$venv/.ready-tests" ] && [ "$(cat "$venv/.ready-tests")" = "$(tests_stamp)" ]; }

# Free bytes in MiB where $1 is, or will be.
free_mib() {
    "$python" -c '
import pathlib, shutil, sys
path = pathlib.Path(sys.argv[1])
while not path.exists():
    path = path.parent
print(shutil.disk_usage(path).free >> 20)' "$1"
}

compiles() { # compiles COMPILER LANGUAGE FLAG: does it take a file with the language's own headers?
    command -v "$1" >/dev/null 2>&1 || return 1
    if [ "$2" = c++ ]; then printf '#include <filesystem>\nint main() { return 0; }\n'; else printf '#include <stdio.h>\nint main(void) { return 0; }\n'; fi |
        "$1" "$3" -fsyntax-only -x "$2" - >/dev/null 2>&1
}

# Name everything that the machine lacks at once, with the line that would help.
check_machine() {
    local problems=() apt=() dnf=() need version why
    find_python
    if [ -z "$python" ]; then
        problems+=("no Python 3.10 to 3.13${python_why:+ ($python_why)}")
        apt+=(python3 python3-venv) dnf+=(python3.12)
    else
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            problems+=("$python has no venv module (ensurepip)")
            apt+=("python$version-venv") dnf+=("python$version")
        fi
        need=3000
        [ "$(wanted_variant)" = cpu ] || need=14000
        if ! is_ready && [ ! -d "$venv/lib" ] && [ "$(free_mib "$root")" -lt "$need" ]; then
            problems+=("too little disk: $root needs $need MiB, $(free_mib "$root") MiB are free")
        fi
    fi
    if [ "$(wanted_variant)" = gpu ] && ! is_ready && why=$(card_problem) && [ -n "$why" ]; then
        problems+=("$why")
    fi
    [ -w "$root" ] || problems+=("$root cannot be written to, and .venv belongs there")
    if ! cached_wheel >/dev/null; then
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

pip() { # pip COMMAND ARGS: shown where a person watches, else kept in .venv/setup.log, whose end is shown on failure
    if [ -t 2 ]; then
        "$venv/bin/python" -m pip "$@"
    elif ! "$venv/bin/python" -m pip "$@" >>"$venv/setup.log" 2>&1; then
        tail -n 25 "$venv/setup.log" | cut -c 1-300 | sed 's/^/  /'
        return 1
    fi
}

install() { # install WHAT ARGS: pip install, or stop with what would help
    local what=$1
    shift
    say "$what"
    pip install "$@" || fail "could not install: $what. pip's reason is above. Is the package index reachable, and is there room on the disk? Then run ./setup.sh again."
}

# --- llama.cpp -------------------------------------------------------------------------------------------------------

llama_version() { sed -n 's/^llama-cpp-python==\([^ ]*\).*/\1/p' "$requirements/llama.txt"; }

cache_folder() {
    local base=${XDG_CACHE_HOME:-}
    [ -n "$base" ] || base=${HOME:+$HOME/.cache}
    [ -n "$base" ] || base=$("${python:-python3}" -c 'import pathlib; print(pathlib.Path.home() / ".cache")' 2>/dev/null) || base=${TMPDIR:-/tmp}
    printf '%s/%s/wheels' "$base" "$cache_name"
}

wheel_folder() { # one folder for each version, machine, C library and set of flags
    local libc
    libc=$(getconf GNU_LIBC_VERSION 2>/dev/null | tr ' ' '-') || libc=libc
    printf '%s/llama-cpp-python-%s-%s-%s-%s-%s' "$(cache_folder)" "$(llama_version)" "$(uname -s)" "$(uname -m)" "$libc" \
        "$(printf '%s' "$llama_flags" | cksum | cut -d ' ' -f 1)"
}

cached_wheel() {
    local wheel
    for wheel in "$(wheel_folder)"/llama_cpp_python-*.whl; do
        [ -s "$wheel" ] || return 1
        printf '%s' "$wheel"
    done
}

# The source archive: the wheel is built from it, and the converter of the very same llama.cpp lies in it.
source_archive() {
    local folder archive work
    folder=$(cache_folder)
    archive=$folder/llama_cpp_python-$(llama_version).tar.gz
    if [ ! -s "$archive" ]; then
        say "llama.cpp's sources (76 MB)"
        work=$(mktemp -d "$folder/download.XXXXXX")
        pip download --no-deps --no-binary llama-cpp-python --dest "$work" "llama-cpp-python==$(llama_version)" ||
            fail "could not fetch the source archive of llama-cpp-python $(llama_version): pip's reason is above"
        mv -f "$work"/*.tar.gz "$archive"
        rm -rf "$work"
    fi
    llama_archive=$archive
}

build_wheel() {
    local folder work
    folder=$(wheel_folder)
    work=$(mktemp -d "$(cache_folder)/build.XXXXXX")
    say "llama.cpp: building it, about 7 minutes on two cores, once on this machine"
    # --no-cache-dir: pip's own cache does not tell a native build from a portable one.
    CMAKE_ARGS=$llama_flags CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(getconf _NPROCESSORS_ONLN)} \
        pip wheel --no-deps --no-cache-dir --wheel-dir "$work" "$llama_archive" ||
        fail "llama.cpp could not be built; the compiler's reason is above"
    mkdir -p "$folder"
    mv -f "$work"/*.whl "$folder/"
    rm -rf "$work"
}

loads_llama() { "$venv/bin/python" -c 'import llama_cpp; llama_cpp.llama_backend_init()' 2>&1 | tail -n 1; [ "${PIPESTATUS[0]}" = 0 ]; }

install_llama() {
    mkdir -p "$(cache_folder)" 2>/dev/null && [ -w "$(cache_folder)" ] || {
        say "$(cache_folder) cannot be written to: what is built is kept in .venv only"
        export XDG_CACHE_HOME=$venv/cache
        mkdir -p "$(cache_folder)"
    }
    # What killed set-ups left there. A day old, for another clone may be building right now.
    find "$(cache_folder)" -maxdepth 1 \( -name 'build.*' -o -name 'download.*' \) -mtime +0 -exec rm -rf {} + 2>/dev/null || true
    source_archive
    cached_wheel >/dev/null || build_wheel
    install "llama.cpp's library and quantiser" --force-reinstall --no-deps --no-cache-dir "$(cached_wheel)"
    if ! loads_llama; then
        say "the kept build of llama.cpp does not run here (above)"
        rm -rf "$(wheel_folder)"
        build_wheel
        install "llama.cpp's library and quantiser" --force-reinstall --no-deps --no-cache-dir "$(cached_wheel)"
        loads_llama || fail "llama.cpp was built and does not run (above)"
    fi
    say "llama.cpp's converter"
    "$venv/bin/python" - "$llama_archive" "$venv/llama.cpp" <<'PY' || fail "the converter could not be unpacked from $llama_archive (is it damaged? remove it and run ./setup.sh again)"
import pathlib, shutil, sys, tarfile

archive, folder = sys.argv[1], pathlib.Path(sys.argv[2])
wanted = ("LICENSE", "convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion/", "gguf-py/", "models/templates/", "models/ggml-vocab-")
partial = folder.with_name(folder.name + ".partial")
shutil.rmtree(partial, ignore_errors=True)
with tarfile.open(archive) as tar:
    for member in tar:
        name = member.name.partition("/vendor/llama.cpp/")[2]
        if member.isfile() and name.startswith(wanted) and ".." not in name.split("/") and not name.endswith((".inp", ".out")):
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tar.extractfile(member).read())
assert (partial / "convert_hf_to_gguf.py").is_file() and (partial / "conversion" / "__init__.py").is_file()
shutil.rmtree(folder, ignore_errors=True)
partial.rename(folder)
PY
}

# --- the rest of the packages ----------------------------------------------------------------------------------------

# Does an index answer within five seconds? A black hole in the network would cost pip many minutes.
answers() {
    "$python" - "$1" <<'PY' >/dev/null 2>&1
import os, pathlib, signal, ssl, sys, urllib.parse, urllib.request

url = urllib.parse.urlsplit(sys.argv[1])
if url.scheme in ("", "file"):
    sys.exit(not pathlib.Path(urllib.request.url2pathname(url.path)).is_dir())
signal.alarm(6)  # looking up a name knows no time limit of its own
trusted = ssl.create_default_context(cafile=os.environ.get("PIP_CERT") or os.environ.get("REQUESTS_CA_BUNDLE"))
with urllib.request.urlopen(sys.argv[1].rstrip("/") + "/torch/", timeout=5, context=trusted):
    pass
PY
}

# Sets `torch_options`: how pip finds the builds, also of what they bring along (Triton has another name for each maker).
install_torch() {
    local pins index
    index=$(torch_index)
    torch_options=()
    pins=$(sed -n 's/^\(torch\(vision\)\{0,1\}==[^ ]*\).*/\1/p' "$requirements/$variant.txt" | tr '\n' ' ')
    pins=${pins% }
    # An index beside the configured ones, never instead of them. 2.13.0+cpu counts as newer than 2.13.0, so it wins.
    # torch and torchvision together: made for different versions of CUDA they do not import.
    # shellcheck disable=SC2086  # two packages
    if [ -z "$index" ]; then
        install "$pins" $pins --no-deps -c "$requirements/constraints.txt"
    elif answers "$index"; then
        [ "$variant" = cpu ] || torch_options=(--extra-index-url "$index")
        install "$pins from $index" $pins --no-deps --extra-index-url "$index"
    elif [ "$variant" = cpu ]; then
        say "$index does not answer: taking PyTorch from the configured index, which may hold only the larger build for GPUs (TORCH_INDEX_URL names another)"
        install "$pins" $pins --no-deps
    else
        fail "$index does not answer, and pip's own index has PyTorch for CUDA 13 only: TORCH_INDEX_URL names another place with builds for this card"
    fi
}

# Do the parts import, and are they the pinned ones? `full` also runs the converter. Says what is wrong.
check_parts() {
    "$venv/bin/python" - "$1" "$requirements" "$venv/llama.cpp" "$variant" <<'PY'
import importlib, importlib.metadata, pathlib, subprocess, sys

from packaging.requirements import Requirement

how, requirements, llama, variant = sys.argv[1], *map(pathlib.Path, sys.argv[2:4]), sys.argv[4]
problems = []
files = ["common.txt", f"{variant}.txt", "llama.txt", "no-deps.txt"] + (["gpu-no-deps.txt"] if variant == "gpu" else [])
for line in "\n".join((requirements / name).read_text() for name in files).splitlines():
    line = line.partition("#")[0].strip()
    if not line or line.startswith("-"):
        continue
    wanted = Requirement(line)
    if wanted.marker is None or wanted.marker.evaluate():
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            found = "none"
        if found == "none" or found not in wanted.specifier:
            problems.append(f"{wanted.name}{wanted.specifier} is wanted, found: {found}")
everything = ["transformers", "trl", "peft", "datasets", "accelerate", "loguru"] if how == "full" else []
for module in ["torch", "tokenizers", "safetensors", "sentencepiece", "gguf", "llama_cpp", *everything]:
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever an import raises, the part does not work
        problems.append(f"{module}: {type(error).__name__}: {error}")
converter = llama / "convert_hf_to_gguf.py"
if not converter.is_file():
    problems.append(f"{converter} is not there")
elif how == "full":
    run = subprocess.run([sys.executable, str(converter), "--print-supported-models"], capture_output=True, text=True)
    if run.returncode or "LlamaForCausalLM" not in run.stdout + run.stderr:
        problems.append(f"{converter.name} does not run: {(run.stderr.strip().splitlines() or ['no reason given'])[-1]}")
for problem in problems:
    print(f"  {problem}")
sys.exit(bool(problems))
PY
}

lock() { # One set-up at a time; the lock is on this very file and ends with the last process of this set-up.
    exec 9<"$self"
    "$python" - <<'PY'
import fcntl, sys
try:
    try:
        fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("setup: another set-up is at work in this folder; waiting for it", file=sys.stderr)
        fcntl.flock(9, fcntl.LOCK_EX)
except OSError as error:
    print(f"setup: this file system knows no locks ({error}); do not start two set-ups at once", file=sys.stderr)
PY
}

install_everything() {
    local version
    version=$("$python" -c 'import platform; print(platform.python_version())')
    say "Python $version ($python), packages for $([ "$variant" = gpu ] && echo a GPU || echo the CPU), into $venv"
    if [ -f "$venv/.ready" ] && grep -qx "variant $variant" "$venv/.ready" && "$venv/bin/python" -c '' 2>/dev/null; then
        rm -f "$venv/.ready" # brought up to date in place; killed on the way, it is made anew by the next run
    else
        rm -f "$venv/.ready" "$venv/.ready-tests"
        [ ! -d "$venv" ] || say ".venv is unfinished or was made otherwise: making it anew"
        "$python" -m venv --clear "$venv" || fail "$python could not make a virtual environment in $venv"
    fi
    install_torch
    install "transformers, trl, peft and the rest" ${torch_options[@]+"${torch_options[@]}"} -r "$requirements/$variant.txt"
    [ "$variant" = cpu ] || install "Unsloth" --no-deps -r "$requirements/gpu-no-deps.txt"
    install "the embedded model (93 MB)" --no-deps -r "$requirements/no-deps.txt"
    install_llama
    say "trying the parts"
    check_parts full || fail "the set-up does not work (above). Remove $venv and run ./setup.sh again; if that does not help, this Python or CPU is one that these packages do not know"
    stamp "$variant" >"$venv/.ready.partial"
    mv -f "$venv/.ready.partial" "$venv/.ready"
}

install_tests() {
    install "what the tests need" --force-reinstall -r "$requirements/test.txt"
    tests_stamp >"$venv/.ready-tests"
}

# The browser in which the tests look at report.html, and a font with Chinese in it. Without them those tests are skipped.
install_browser() {
    local packages=(chromium fonts-noto-cjk) why=""
    if command -v chromium >/dev/null 2>&1 && [ -n "$(fc-list :lang=zh 2>/dev/null)" ]; then return 0; fi
    if ! command -v apt-get >/dev/null 2>&1; then
        why="no apt-get here; install chromium and a Chinese font by hand"
    elif [ "$(id -u)" != 0 ]; then
        why="that takes root: sudo apt-get install -y ${packages[*]}"
    else
        say "${packages[*]}, for the tests of the report in a browser"
        { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${packages[@]}"; } >>"$venv/setup.log" 2>&1 ||
            why="apt-get could not install ${packages[*]}: $(tail -n 1 "$venv/setup.log")"
    fi
    [ -z "$why" ] || say "without Chromium the tests of the report in a browser are skipped: $why"
}

with_tests=false
case ${1:-} in
"") ;;
--tests) with_tests=true ;;
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
    say "unknown argument: $1 (--tests, --ready, --python or --help)"
    exit 2
    ;;
esac

started=$SECONDS
check_machine
lock
variant=$(wanted_variant)
if is_ready; then
    if ! check_parts quick; then
        say "something is broken in .venv (above)"
        rm -f "$venv/.ready"
        install_everything
    fi
else
    install_everything
fi
if [ "$with_tests" = true ]; then
    tests_are_ready || install_tests
    install_browser
fi
if [ "$variant" = gpu ] && has_gpu && ! "$venv/bin/python" -c 'import sys, torch; sys.exit(not (torch.cuda.is_available() or torch.xpu.is_available()))'; then
    say "a card ($(gpu_kind)) is here but PyTorch does not see it: does its driver run? For a build for older CUDA drivers remove .venv, then TORCH_INDEX_URL=$torch_builds/cu126 ./setup.sh"
fi
say "ready in $((SECONDS - started)) s"
