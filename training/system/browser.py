"""The browser in which the tests look at report.html, and a font with Chinese in it. Without them those tests are skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from training.system.venv_pip import call, say

PACKAGES = ("chromium", "fonts-noto-cjk")


def is_there() -> bool:
    """Whether browser and font are installed."""
    if shutil.which("chromium") is None or shutil.which("fc-list") is None:
        return False
    return bool(subprocess.run(["fc-list", ":lang=zh"], capture_output=True).stdout.strip())


def install(log: Path, root: bool) -> str:
    """Install them where that can be done; the reason where it cannot. `root`: whether this user may install."""
    names = " ".join(PACKAGES)
    if shutil.which("apt-get") is None:
        return "no apt-get here; install chromium and a Chinese font by hand"
    if not root:
        return f"that takes root: sudo apt-get install -y {names}"
    say(f"{names}, for the tests of the report in a browser")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with log.open("ab") as out:
        for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
            if call("apt-get", *command, env=env, out=out) != 0:
                last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
                return f"apt-get could not install {names}: {''.join(last)}"
    return ""


def provide(log: Path, root: bool) -> None:
    """Install what is missing, or say that those tests are skipped. Never fails: the set-up goes on without."""
    if is_there():
        return
    why = install(log, root)
    if why:
        say(f"without Chromium the tests of the report in a browser are skipped: {why}")
