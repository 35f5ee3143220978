"""A process that ends with the one that started it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


def end_with_parent(before: Callable[[], None] = lambda: None) -> None:
    """End this process when stdin closes, which it does when the parent dies, however it died; `before` that, call this."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        before()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
