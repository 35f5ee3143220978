"""What the network's own troubles are called: addresses that are none, proxies that cannot be used. The same for all hubs."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from training.hubs.wanted import Unreachable
from training.system import privacy


def address(written: str, variable: str) -> str:
    """An address as it can be shown, without a name or password that may stand in it. Unreachable where it is none."""
    scheme, slashes, rest = written.partition("://")
    if scheme.lower() not in ("http", "https") or not slashes:
        raise Unreachable(f"{variable} needs https:// in front of {privacy.shown(written.rpartition('@')[2])}")
    name, slash, path = rest.partition("/")
    host = name.rpartition("@")[2]
    shown = privacy.shown(f"{scheme}{slashes}{host}{slash}{path}")
    try:
        parts = urlsplit(f"//{host}")
        known = bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise Unreachable(f"{variable} = {shown} is no address; it is written https://HOST or https://HOST:PORT")
    return shown


def of_the_proxy(error: Exception) -> Unreachable | None:
    """What to say where the address of a proxy is wrong, which is seen before anything is asked; None for other errors."""
    import httpx

    if not isinstance(error, httpx.InvalidURL) and "proxy" not in str(error).lower():
        return None
    if isinstance(error, httpx.InvalidURL) and (ranges := _excepted_ranges()):
        return Unreachable(f"NO_PROXY: ranges of addresses cannot be read there ({', '.join(ranges)}): leave them out")
    return Unreachable(
        "the proxy in HTTPS_PROXY, HTTP_PROXY or ALL_PROXY cannot be used: it is written http://HOST:PORT, or "
        f"http://USER:PASSWORD@HOST:PORT ({privacy.shown(str(error)).rstrip('.')})"
    )


def _excepted_ranges() -> list[str]:
    """What NO_PROXY has of IPv6 ranges, over which httpx stumbles."""
    named = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",")
    return [privacy.shown(one.strip()) for one in named if ":" in one and "/" in one and "://" not in one]
