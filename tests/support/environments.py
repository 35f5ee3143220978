"""Virtual environments over the project's own, for packages that only some tests want."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.session import locked


def python_with(name: str, requirements: Sequence[Path]) -> Path:
    """The Python of .cache/NAME: the project's packages, and before them what these files name, without what that brings."""
    wanted = "\n".join([sys.prefix, sys.version, *(file.read_text() for file in requirements)])
    folder = ROOT / ".cache" / name
    with locked(folder.with_suffix(".lock")):
        _install(folder, wanted, requirements)
    return folder / "bin" / "python"


def _install(folder: Path, wanted: str, requirements: Sequence[Path]) -> None:
    """Make the environment, unless what is there was made from the very same files."""
    python = folder / "bin" / "python"
    if not (folder / "made-from").is_file() or (folder / "made-from").read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        site = sysconfig.get_path("purelib", vars={"base": str(folder)})
        (Path(site) / "project.pth").write_text(sysconfig.get_path("purelib") + "\n")
        (folder / "llama.cpp").symlink_to(Path(sys.prefix) / "llama.cpp")
        command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
        command += [part for file in requirements for part in ("-r", str(file))]
        subprocess.run(command, check=True)
        (folder / "made-from").write_text(wanted)
