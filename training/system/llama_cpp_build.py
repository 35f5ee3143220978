"""llama.cpp for this machine: built once, kept in the user's cache, installed from there; and its converter.

The wheel is built from the source archive, and the converter of the very same llama.cpp lies in it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from training.errors import MachineError
from training.system import shell
from training.system.venv_pip import Pip, say

# Of llama.cpp's sources: what the converter needs, the chat templates and the vocabularies.
WANTED = (
    *("LICENSE", "convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion/", "gguf-py/"),
    *("models/templates/", "models/ggml-vocab-"),
)
WHAT = "llama.cpp's library and quantiser"
FASTER = Path(__file__).with_suffix(".cmake")
A_DAY = 24 * 60 * 60


def pinned_version(requirements: Path) -> str:
    """The release of llama-cpp-python that is pinned."""
    text = (requirements / "llama.txt").read_text(encoding="utf-8")
    found = re.search(r"^llama-cpp-python==([^ \n]*)", text, re.MULTILINE)
    if found is None:
        raise MachineError(f"{requirements / 'llama.txt'} pins no llama-cpp-python")
    return found[1]


@dataclass(frozen=True)
class Build:
    """One release with its flags. `wheels`: the folder for what is built with them; the archives lie beside it."""

    version: str
    flags: str
    wheels: Path
    pip: Pip

    @property
    def cache(self) -> Path:
        """The folder of the archives and of every build."""
        return self.wheels.parent

    def kept(self) -> Path | None:
        """The wheel that was built before, or None."""
        wheels = sorted(self.wheels.glob("llama_cpp_python-*.whl"))
        return wheels[0] if wheels and wheels[0].stat().st_size else None

    def source_archive(self) -> Path:
        """The source archive; fetched where it is not there."""
        archive = self.cache / f"llama_cpp_python-{self.version}.tar.gz"
        if not archive.is_file() or not archive.stat().st_size:
            say("llama.cpp's sources (76 MB)")
            work = Path(tempfile.mkdtemp(prefix="download.", dir=self.cache))
            package = f"llama-cpp-python=={self.version}"
            if not self.pip.run("download", "--no-deps", "--no-binary", "llama-cpp-python", "--dest", work, package):
                raise MachineError(
                    f"could not fetch the source archive of llama-cpp-python {self.version}: pip's reason is above"
                )
            next(work.glob("*.tar.gz")).replace(archive)
            shutil.rmtree(work)
        return archive

    def make(self, archive: Path) -> Path:
        """Build the wheel, and keep it."""
        work = Path(tempfile.mkdtemp(prefix="build.", dir=self.cache))
        say("llama.cpp: building it, about 2 minutes on two cores, once on this machine")
        cores = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.sysconf("SC_NPROCESSORS_ONLN"))
        # No part of the name under which a build is kept: with or without it, the library does the same.
        faster = shlex.quote(f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={FASTER}")
        environ = {"CMAKE_ARGS": f"{self.flags} {faster}", "CMAKE_BUILD_PARALLEL_LEVEL": cores}
        # --no-cache-dir: pip's own cache does not tell a native build from a portable one.
        if not self.pip.run("wheel", "--no-deps", "--no-cache-dir", "--wheel-dir", work, archive, environ=environ):
            raise MachineError("llama.cpp could not be built; the compiler's reason is above")
        self.wheels.mkdir(parents=True, exist_ok=True)
        built = next(work.glob("*.whl"))
        built.replace(self.wheels / built.name)
        shutil.rmtree(work)
        return self.wheels / built.name

    def install(self, wheel: Path) -> bool:
        """Install a wheel; whether it then runs here. What it says where it does not is shown."""
        self.pip.install(WHAT, "--force-reinstall", "--no-deps", "--no-cache-dir", wheel)
        tried = subprocess.run(
            [str(self.pip.python), "-c", "import llama_cpp; llama_cpp.llama_backend_init()"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        for line in tried.stdout.splitlines()[-1:]:
            print(line, file=sys.stderr, flush=True)
        return tried.returncode == 0


def writable(wheels: Path, venv: Path) -> Path:
    """The folder for builds; inside .venv where the cache cannot be written to."""
    with contextlib.suppress(OSError):
        wheels.parent.mkdir(parents=True, exist_ok=True)
    if os.access(wheels.parent, os.W_OK):
        return wheels
    say(f"{wheels.parent} cannot be written to: what is built is kept in .venv only")
    inside = venv / "cache" / wheels.parent.parent.name / wheels.parent.name / wheels.name
    inside.parent.mkdir(parents=True, exist_ok=True)
    return inside


def remove_leftovers(cache: Path) -> None:
    """Remove what killed set-ups left. A day old, for another clone may be building right now."""
    for name in ("build.*", "download.*"):
        for left in cache.glob(name):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime >= A_DAY:
                    shutil.rmtree(left)


def unpack_converter(archive: Path, folder: Path) -> None:
    """Put the converter of a source archive into `folder`, whole or not at all. MachineError where it is not in there."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = member.name.partition("/vendor/llama.cpp/")[2]
                if member.isfile() and _is_wanted(name):
                    path = partial / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    content = tar.extractfile(member)
                    path.write_bytes(content.read() if content else b"")
    except (OSError, EOFError, tarfile.TarError):
        whole = False
    else:
        whole = all((partial / name).is_file() for name in ("convert_hf_to_gguf.py", "conversion/__init__.py"))
    if not whole:
        shutil.rmtree(partial, ignore_errors=True)
        raise MachineError(
            f"the converter could not be unpacked from {archive} "
            f"(is it damaged? remove it and run {shell.command('setup.sh')} again)"
        )
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _is_wanted(name: str) -> bool:
    return name.startswith(WANTED) and ".." not in name.split("/") and not name.endswith((".inp", ".out"))


def install(requirements: Path, flags: str, wheels: Path, venv: Path) -> None:
    """Install library, quantiser and converter into .venv, from the kept build where it runs here."""
    build = Build(pinned_version(requirements), flags, writable(wheels, venv), Pip(venv))
    remove_leftovers(build.cache)
    archive = build.source_archive()
    if not build.install(build.kept() or build.make(archive)):
        say("the kept build of llama.cpp does not run here (above)")
        shutil.rmtree(build.wheels)
        if not build.install(build.make(archive)):
            raise MachineError("llama.cpp was built and does not run (above)")
    say("llama.cpp's converter")
    unpack_converter(archive, venv / "llama.cpp")
