"""Are the packages in .venv the pinned ones, and do they work? Run by the Python of .venv:

installed_parts.py quick|full REQUIREMENTS CONVERTER_FOLDER cpu|gpu  prints what is wrong, and exits 1 where something is
"""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

if __name__ == "__main__":  # as a script, this folder stands first on the path and would shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

QUICK = ("torch", "tokenizers", "safetensors", "sentencepiece", "gguf", "llama_cpp")
FULL = ("transformers", "trl", "peft", "datasets", "accelerate", "loguru")


def pins(requirements: Path, variant: str) -> list[str]:
    """The lines of the requirements for this variant, without comments and options."""
    names = ["common.txt", f"{variant}.txt", "llama.txt", "no-deps.txt"]
    names += ["gpu-no-deps.txt"] if variant == "gpu" else []
    lines = "\n".join((requirements / name).read_text(encoding="utf-8") for name in names).splitlines()
    stripped = (line.partition("#")[0].strip() for line in lines)
    return [line for line in stripped if line and not line.startswith("-")]


def other_releases(lines: Iterable[str]) -> list[str]:
    """Of the packages that these lines pin for this machine, those that are not there in that release."""
    from packaging.requirements import Requirement

    problems = []
    for line in lines:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            found = "none"
        if found == "none" or found not in wanted.specifier:
            problems.append(f"{wanted.name}{wanted.specifier} is wanted, found: {found}")
    return problems


def broken(modules: Iterable[str]) -> list[str]:
    """Of these modules, those that do not import, with the reason."""
    problems = []
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever an import raises, the part does not work
            problems.append(f"{module}: {type(error).__name__}: {error}")
    return problems


def converter_problems(folder: Path, run: bool) -> list[str]:
    """What is wrong with llama.cpp's converter in this folder; `run`: whether it is also started."""
    converter = folder / "convert_hf_to_gguf.py"
    if not converter.is_file():
        return [f"{converter} is not there"]
    if not run:
        return []
    done = subprocess.run([sys.executable, str(converter), "--print-supported-models"], capture_output=True, text=True)
    if done.returncode == 0 and "LlamaForCausalLM" in done.stdout + done.stderr:
        return []
    return [f"{converter.name} does not run: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"]


def main(how: str, requirements: Path, folder: Path, variant: str) -> int:
    """Print every problem; 1 where there is one."""
    full = how == "full"
    problems = [
        *other_releases(pins(requirements, variant)),
        *broken((*QUICK, *(FULL if full else ()))),
        *converter_problems(folder, full),
    ]
    for problem in problems:
        print(f"  {problem}")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]))
