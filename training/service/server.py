"""The program behind ./run.sh --serve. Its process trains nothing and loads no model: runs and models are processes of
their own, and the runs go on when it ends.
"""

# ruff: noqa: E402  what stands between the imports must come before some of them

from __future__ import annotations

import getpass
import importlib.util
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

if __name__ == "__main__":  # as a script, this folder stands first on the path and would shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from loguru import logger

from training import settings
from training.errors import FinetuneError, MachineError, UserError
from training.settings import Settings, command_line
from training.settings.contradictions import is_this_machine
from training.system import foreign_code, log, shell

PACKAGES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}
SHORTEST_TOKEN = 16
GRACE = 5  # seconds that answers under way have when the server ends


def check_packages() -> None:
    """MachineError where a package of the service is not installed."""
    missing = [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise MachineError(
            f"the service needs packages that are not installed ({', '.join(missing)}): "
            f"{shell.command('setup.sh', '--service')}"
        )


def token_of(own: Settings) -> str | None:
    """The token of TOKEN_FILE. UserError where the file has none that serves."""
    path = own.service.token_file
    if path is None:
        return None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{own.place('Service.TOKEN_FILE')}: cannot be read: {error}") from None
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"{own.place('Service.TOKEN_FILE')}: must hold one word of at least {SHORTEST_TOKEN} plain characters; "
            "`openssl rand -hex 32` makes one"
        )
    return token


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there. MachineError where that cannot be."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, proto)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        # Of two that start at once both may come as far as here.
        sock.listen(128)
    except OSError as error:
        raise MachineError(
            f"{host}:{port} cannot be listened on: {error.strerror or error}; --port names another port"
        ) from None
    return sock


def address(host: str, port: int) -> str:
    """What a browser on this machine opens."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def hints(host: str, port: int) -> list[str]:
    """What to say to a person: for one on SSH, the line to type on the own machine."""
    name = f"[{host}]" if ":" in host else host
    told = [f"serving on {address(host, port)}; Ctrl-C ends it, and no run"]
    if os.environ.get("SSH_CONNECTION") and is_this_machine(host):
        here = os.environ["SSH_CONNECTION"].split()
        machine = here[2] if len(here) > 2 else socket.gethostname()
        told.append(
            f"on your own machine: ssh -N -L {port}:{name}:{port} {getpass.getuser()}@{machine}"
            f"  then open http://localhost:{port}"
        )
    return told


def serve(own: Settings, stdout: IO[str]) -> None:
    """Answer until a signal comes. The address goes to `stdout`."""
    check_packages()
    token = token_of(own)
    sock = listening(own.service.host, own.service.port)
    os.chdir(own.config.parent)  # where relative paths of requests start
    import uvicorn

    from training.service import app
    from training.service.connections import Connection

    config = uvicorn.Config(
        app.make(own, token),
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=GRACE,
        proxy_headers=False,
        h11_max_incomplete_event_size=32 << 10,
    )
    port = sock.getsockname()[1]
    for line in hints(own.service.host, port):
        logger.info(line)
    log.say_line(stdout, address(own.service.host, port))
    uvicorn.Server(config).run(sockets=[sock])


def main(argv: Sequence[str]) -> int:
    """The command line. The exit code."""
    foreign_code.trust(False)
    stdout = log.claim_stdout()
    log.start()
    try:
        arguments = command_line.parse(argv)
        serve(settings.load(arguments.config, arguments.overrides), stdout)
    except FinetuneError as error:
        logger.error("{}", error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
