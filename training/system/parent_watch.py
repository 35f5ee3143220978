"""A process that ends with the one that started it."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

# Seconds in which a rank whose launcher is gone has stopped in good order.
ORDERLY = 60.0


def end_with_parent(before: Callable[[], None] = lambda: None) -> None:
    """End this process when stdin closes, which it does when the parent dies, however it died; `before` that, call this."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        before()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def stop_with_launcher(folder: Path | None, launcher: int | None = None) -> None:
    """Stop this process as SIGTERM does when its parent is gone, however that ended; `folder`: what the parent would have
    removed; `launcher`: its number, where that is known: it may be gone by now. All ranks of a launcher do, together."""
    launcher = launcher or os.getppid()

    def wait() -> None:
        while os.getppid() == launcher:
            time.sleep(0.2)
        if folder is not None:
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORDERLY)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
