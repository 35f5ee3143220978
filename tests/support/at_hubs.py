"""This process's hubs, led to those on loopback, with caches of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hubs import Hub, ModelScope
from training.data import hub_files
from training.hubs import modelscope_http


def led_to(monkeypatch: pytest.MonkeyPatch, folder: Path, hub: Hub | str, scope: ModelScope | str) -> None:
    """Ask these, or addresses, and nobody else; what was fetched before is forgotten."""
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN", "MODELSCOPE_DOMAIN", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    address = hub if isinstance(hub, str) else hub.address
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hf"))
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", scope if isinstance(scope, str) else scope.address)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(folder / "ms"))
    monkeypatch.setattr(modelscope_http, "PAUSE", 0.0)
    monkeypatch.setattr(hub_files, "_known", {})


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE = 1, which is read when huggingface_hub is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def nowhere() -> str:
    """An address at which nobody listens."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def stopping(*servers: Hub | ModelScope) -> Iterator[None]:
    """End them behind the test."""
    yield
    for server in servers:
        server.server.shutdown()
