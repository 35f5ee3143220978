"""The inner side of conversion.py: one conversion or quantisation in a process of its own. It ends when its stdin closes.

conversion_worker.py convert CONVERTER.py ARGUMENTS...      conversion_worker.py quantise SOURCE OUT METHOD [IMPORTANCE.npz]
conversion_worker.py convert_with PAIRS.json CONVERTER.py ARGUMENTS...

Its last line says that the work was done. The exit code alone does not: it is 0 as well for a script that is being replaced
just then, and, where the one who asked was told to ignore the ends of children, for a process that was killed.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if __name__ == "__main__":  # run as a script, training/ stands first on the path and would shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from training.system import foreign_code, this_machine, threads
from training.system.parent_watch import end_with_parent

if TYPE_CHECKING:
    import numpy as np

DONE = "conversion worker: done"


def convert(script: str, *arguments: str) -> None:
    """Run llama.cpp's converter as if it were called by itself: it looks for its parts beside sys.path[0]."""
    sys.path[0] = str(Path(script).parent)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def convert_with(pairs: str, script: str, *arguments: str) -> None:
    """`convert`, with the pairs of a JSON file in the GGUF: last, so that they stand whatever a part has written."""
    sys.path.insert(1, str(Path(script).parent / "gguf-py"))
    import gguf

    write_header = gguf.GGUFWriter.write_header_to_file

    def with_pairs(writer: gguf.GGUFWriter, path: Path | None = None) -> None:
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
        for key, value in json.loads(Path(pairs).read_text(encoding="utf-8")).items():
            writer.remove_key(key)
            add[type(value)](key, value)
        write_header(writer, path)

    gguf.GGUFWriter.write_header_to_file = with_pairs
    convert(script, *arguments)


def quantise(source: str, out: str, method: str, importance: str = "") -> int:
    """Quantise with llama.cpp's library; 0 when it went well. What it says goes to stderr.

    importance: an .npz of importance.write.
    """
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type(llama_cpp, method)
    params.nthread = threads.allowed(len(this_machine.processors()))
    rows = importance_rows(importance) if importance else {}
    if rows:
        params.imatrix = _matrix(llama_cpp, rows)
        params.kv_overrides = _noted(llama_cpp, len(rows))
    code: int = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params))
    return code


def importance_rows(path: str) -> dict[str, np.ndarray]:
    """The float32 vectors of an importance matrix by tensor, the experts of a tensor one after the other."""
    import numpy as np

    with np.load(path) as found:
        return {name: np.ascontiguousarray(found[name], np.float32).reshape(-1) for name in found}


def _matrix(llama_cpp: ModuleType, rows: Mapping[str, np.ndarray]) -> object:
    """A C array of llama_model_imatrix_data that ends in an entry without a name (tools/quantize/quantize.cpp)."""
    entry = llama_cpp.llama_model_imatrix_data
    filled = [
        entry(name.encode(), values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), values.size)
        for name, values in rows.items()
    ]
    return (entry * (len(filled) + 1))(*filled)


def _noted(llama_cpp: ModuleType, count: int) -> object:
    """What llama.cpp's own tool writes into a file that was made with an importance matrix; ends in an empty key."""
    pair = llama_cpp.llama_model_kv_override
    number, text = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT, llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR
    pairs = (pair * 3)(pair(number, b"quantize.imatrix.entries_count"), pair(text, b"quantize.imatrix.dataset"))
    pairs[0].value.val_i64 = count
    pairs[1].value.val_str = b"rows of the training data"
    return pairs


def file_type(llama_cpp: ModuleType, method: str) -> int:
    """llama.cpp's number for a method such as q4_k_m (enum llama_ftype)."""
    name = "LLAMA_FTYPE_ALL_F32" if method == "f32" else f"LLAMA_FTYPE_MOSTLY_{method.upper()}"
    number: int = getattr(llama_cpp, name)
    return number


if __name__ == "__main__":
    foreign_code.keep_out()
    end_with_parent()
    commands: dict[str, Callable[..., int | None]] = {
        "convert": convert,
        "convert_with": convert_with,
        "quantise": quantise,
    }
    if code := commands[sys.argv[1]](*sys.argv[2:]):
        sys.exit(code)
    print(f"\n{DONE}", flush=True)
