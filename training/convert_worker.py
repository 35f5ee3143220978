"""The inner side of convert.py: one conversion or quantisation in a process of its own. It ends when its stdin closes.

convert_worker.py convert CONVERTER.py ARGUMENTS...      convert_worker.py quantise SOURCE OUT METHOD
"""

from __future__ import annotations

import ctypes
import os
import runpy
import sys
import threading
from pathlib import Path

if __name__ == "__main__":  # run as a script, training/ stands first on the path and would shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)


def end_with_parent() -> None:
    """End this process when stdin closes, which it does when the parent dies, however it died."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def convert(script: str, *arguments: str) -> None:
    """Run llama.cpp's converter as if it were called by itself: it looks for its parts beside sys.path[0]."""
    sys.path[0] = str(Path(script).parent)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def quantise(source: str, out: str, method: str) -> int:
    """Quantise with llama.cpp's library; 0 when it went well. What it says goes to stderr."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type(llama_cpp, method)
    params.nthread = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params))


def file_type(llama_cpp: object, method: str) -> int:
    """llama.cpp's number for a method such as q4_k_m (enum llama_ftype)."""
    name = "LLAMA_FTYPE_ALL_F32" if method == "f32" else f"LLAMA_FTYPE_MOSTLY_{method.upper()}"
    return getattr(llama_cpp, name)


if __name__ == "__main__":
    end_with_parent()
    sys.exit({"convert": convert, "quantise": quantise}[sys.argv[1]](*sys.argv[2:]))
