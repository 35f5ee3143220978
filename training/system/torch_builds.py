"""Which build of PyTorch a machine needs, and whether it would run there.

python3 training/system/torch_builds.py problem CARD  prints why the build would not run on the card (nvidia, amd or intel) that
is here; nothing where it would, or where nothing can be said.
"""

# ruff: noqa: E402  what stands between the imports must come before some of them

from __future__ import annotations

import os
import re
import ssl
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

if __name__ == "__main__":  # as a script, this folder stands first on the path and would shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from training.system import shell

BUILDS = "https://download.pytorch.org/whl"
# What PyPI's build of the pinned torch is made for (its requirement cuda-toolkit says so), and the first driver for it.
CUDA = "13.0"
DRIVER = "580"


def index(variant: str, card: str, environ: Mapping[str, str]) -> str:
    """The index with PyTorch's builds: the caller's, else what the machine asks for; "" where pip's own has the right one."""
    if environ.get("TORCH_INDEX_URL"):
        return environ["TORCH_INDEX_URL"]
    if variant == "cpu":
        return f"{BUILDS}/cpu"
    if card == "amd":
        version = _rocm(environ)
        return f"{BUILDS}/rocm{version}" if version else ""
    return f"{BUILDS}/xpu" if card == "intel" else ""


def _rocm_folder(environ: Mapping[str, str]) -> str:
    return environ.get("ROCM_PATH") or "/opt/rocm"


def _rocm(environ: Mapping[str, str]) -> str:
    """Major and minor version of the ROCm that is installed, or ""."""
    try:
        text = Path(_rocm_folder(environ), ".info", "version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"^[0-9]+\.[0-9]+", text, re.MULTILINE)
    return found[0] if found else ""


def card_problem(card: str, environ: Mapping[str, str], nvidia_smi: str = "") -> str:
    """Why PyTorch's build would not run on this card, with what would do. `nvidia_smi`: what that program prints."""
    if card == "amd" and not index("gpu", card, environ):
        where = f"no {_rocm_folder(environ)}/.info/version"
        return (
            f"an AMD card is here, and which ROCm is not known ({where}): name the index of its builds, as in "
            f"TORCH_INDEX_URL={BUILDS}/rocm7.0 {shell.command('setup.sh')}"
        )
    wheel = _cuda_of_index(environ.get("TORCH_INDEX_URL", ""))
    cuda = re.search(r"CUDA (?:UMD )?Version: *([0-9]+)\.([0-9]+)", nvidia_smi)
    # Within one major version of CUDA an older driver serves newer builds.
    if card != "nvidia" or not wheel or not cuda or int(cuda[1]) >= int(wheel.partition(".")[0]):
        return ""
    driver = re.search(r"Driver Version: *([0-9.]+)", nvidia_smi)
    return (
        f"the driver ({driver[1] if driver else 'version unknown'}) serves CUDA {cuda[1]}.{cuda[2]}, PyTorch is built "
        f"for CUDA {wheel}: install driver {DRIVER} or newer, or take a build for this one: "
        f"TORCH_INDEX_URL={BUILDS}/cu126 {shell.command('setup.sh')}"
    )


def _cuda_of_index(url: str) -> str:
    """The CUDA that an index's builds are made for; "" where the name does not tell."""
    found = re.search(r"/cu([0-9]+)([0-9])$", url.removesuffix("/"))
    if found:
        return f"{found[1]}.{found[2]}"
    return "" if "/" in url else CUDA


def answers(url: str) -> bool:
    """Does an index answer within six seconds? A black hole in the network would cost pip many minutes.

    Asked in a process of its own, for looking up a name knows no time limit and cannot be broken off.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme in ("", "file"):
        return Path(urllib.request.url2pathname(parts.path)).is_dir()
    command = [sys.executable, "-B", __file__, "ask", url]
    try:
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=6).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _ask(url: str) -> None:
    """Ask an index for torch; raises whatever goes wrong."""
    trusted = ssl.create_default_context(cafile=os.environ.get("PIP_CERT") or os.environ.get("REQUESTS_CA_BUNDLE"))
    with urllib.request.urlopen(f"{url.rstrip('/')}/torch/", timeout=5, context=trusted):
        pass


def nvidia_smi() -> str:
    """What nvidia-smi prints, or ""."""
    try:
        done = subprocess.run(["nvidia-smi"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, errors="replace")
    except OSError:
        return ""
    return done.stdout


def main(argv: Sequence[str]) -> int:
    """`problem CARD`: print what speaks against the card. `ask URL`: does an index answer? The exit code."""
    what, of = argv
    if what == "ask":
        _ask(of)
    else:
        print(card_problem(of, os.environ, nvidia_smi() if of == "nvidia" else ""), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
