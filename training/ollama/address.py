"""Where a live Ollama listens: OLLAMA_HOST, in every form that Ollama's own programs take (envconfig/config.go)."""

from __future__ import annotations

import ipaddress
import os
from contextlib import suppress
from dataclasses import dataclass

VARIABLE = "OLLAMA_HOST"
PORT = 11434
_PORTS = {"http": 80, "https": 443}  # of an address that names its scheme and no port


@dataclass(frozen=True)
class Address:
    """A server: `path` is what stands before /api, "" or "/some/where"."""

    scheme: str = "http"
    host: str = "127.0.0.1"
    port: int = PORT
    path: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


def from_environment() -> Address:
    """The address that OLLAMA_HOST names, else the usual one."""
    return parse(os.environ.get(VARIABLE, ""))


def parse(written: str) -> Address:
    """`written` is a host, a port (":11434"), both, an IPv6 address with brackets or without, or a URL with a path.

    An address that a server listens on at all interfaces is reached through the loopback one; a port that is none is
    the usual one, as for Ollama itself.
    """
    text = written.strip().strip("\"'").strip()
    scheme, named, rest = text.partition("://")
    if not named:
        scheme, rest = "http", text
        if text == "ollama.com":
            scheme, rest = "https", "ollama.com:443"
    usual = _PORTS.get(scheme, PORT) if named else PORT
    at, _, path = rest.partition("/")
    host, port = _host_and_port(at) or (at.strip("[]") if _is_ip(at.strip("[]")) else at, str(usual))
    number = int(port) if port.isascii() and port.isdigit() and int(port) <= 65535 else usual
    return Address(scheme, _connectable(host), number, f"/{path.strip('/')}" if path.strip("/") else "")


def _host_and_port(text: str) -> tuple[str, str] | None:
    """The two parts of "host:port" or "[address]:port"; None where it is not written so."""
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        return (host, rest[1:]) if closed and rest.startswith(":") and ":" not in rest[1:] else None
    host, colon, port = text.rpartition(":")
    return (host, port) if colon and ":" not in host else None


def _is_ip(text: str) -> bool:
    with suppress(ValueError):
        ipaddress.ip_address(text)
        return True
    return False


def _connectable(host: str) -> str:
    if not host:
        return "127.0.0.1"
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        if address.is_unspecified:
            return "127.0.0.1" if address.version == 4 else "::1"
    return host
