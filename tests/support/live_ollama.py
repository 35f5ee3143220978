"""A real Ollama server of a test's own: on a free loopback port, with its own models, ended by its process."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from training.errors import FinetuneError
from training.ollama import Server
from training.ollama.address import Address

WAIT = 60.0  # seconds for a server to answer


def programs() -> list[str]:
    """The real `ollama` commands to test against: OLLAMA, one or several with a colon between, else the one on the PATH."""
    named = [path for path in os.environ.get("OLLAMA", "").split(os.pathsep) if path]
    found = shutil.which("ollama")
    return named or ([found] if found else [])


class Live:
    """A server that runs. `environment`: for programs that are to ask it."""

    def __init__(self, program: str, folder: Path, limit_blocks: int | None = None) -> None:
        self.program, self.folder = program, folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.environment = {
            "OLLAMA_HOST": f"127.0.0.1:{self.port}",
            "OLLAMA_MODELS": str(folder / "models"),
            "HOME": str(folder),
            "OLLAMA_NUM_PARALLEL": "1",
            "OLLAMA_KEEP_ALIVE": "60s",
        }
        self.limit_blocks = limit_blocks
        self.log = (folder / "serve.log").open("ab")
        self.start()

    def start(self) -> None:
        command = ["nice", self.program, "serve"]
        if self.limit_blocks is not None:  # a disk that is full: no file may become longer
            command = ["bash", "-c", f"ulimit -f {self.limit_blocks}; exec {self.program} serve"]
        environment = {"PATH": os.environ["PATH"], **self.environment}
        self.process = subprocess.Popen(
            command, env=environment, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL, start_new_session=True
        )
        until = time.monotonic() + WAIT
        while time.monotonic() < until:
            try:
                self.version = self.server().version()
                return
            except FinetuneError:
                time.sleep(0.1)
        self.end()
        raise AssertionError(f"{self.program} serve does not answer; see {self.folder}/serve.log")

    def server(self, patience: float = 120.0) -> Server:
        return Server(Address(port=self.port), patience)

    def kill(self) -> None:
        """End it at once, as a crash does."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """End it, and the runners that it has started."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
        self.log.close()
