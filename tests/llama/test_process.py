"""llama.cpp in a process of its own (training/llama/process.py)."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from training.base_model import sources
from training.errors import MachineError, RunError
from training.llama import Process, answer, kept, logits, logits_each, metadata, opened, protocol
from training.llama import process as llama

PROMPT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def gguf() -> Path:
    """The embedded model as it comes in its package."""
    return sources.embedded_file()


@pytest.mark.embedded
def test_special_tokens_are_recognised_only_when_asked(gguf: Path) -> None:
    with_special, without = (llama.tokenise(gguf, ["<|im_end|>", ""], special) for special in (True, False))
    assert with_special == [[2], []]
    assert len(without[0]) > 1


@pytest.mark.embedded
def test_the_vocabulary_tells_which_tokens_end_an_answer(gguf: Path) -> None:
    found = metadata(gguf)
    assert found["tokenizer.ggml.pre"] == "smollm"
    assert found["vocab"]["eos"] == 2
    assert 2 in found["vocab"]["end"]
    assert found["vocab"]["add_bos"] is False
    assert found["vocab"]["attributes"][2] & (1 << 3)  # control


@pytest.mark.embedded
def test_logits_of_a_long_sequence_come_whole_and_in_order(gguf: Path) -> None:
    ids = llama.tokenise(gguf, ["Paris is the capital of France. " * 50])[0]
    assert len(ids) > protocol.BLOCK
    (whole,) = logits(gguf, [ids])
    assert whole.shape == (len(ids), 49152)
    predicted = whole.argmax(-1)
    # The second half repeats the first: a model that sees its tokens in order predicts nearly all of them.
    assert (predicted[200:-1] == ids[201:]).mean() > 0.9
    (end,) = logits(gguf, [ids], first=[len(ids) - 3])
    assert end.shape == (3, 49152)
    assert abs(end - whole[-3:]).max() < 1e-3


@pytest.mark.embedded
def test_each_sequence_starts_afresh(gguf: Path) -> None:
    a, b = llama.tokenise(gguf, ["One two three", "Berlin lies in Germany"])
    together, alone = logits(gguf, [a, b, a]), logits(gguf, [b])
    assert abs(together[0] - together[2]).max() < 1e-4
    assert abs(together[1] - alone[0]).max() < 1e-4


@pytest.mark.embedded
def test_an_answer_streams_stops_and_keeps_to_its_limit(gguf: Path) -> None:
    pieces: list[tuple[int, str]] = []
    whole, cut = answer(gguf, [PROMPT, PROMPT], 200, on_text=lambda n, text: pieces.append((n, text)))
    assert whole.stopped
    assert 2 not in whole.ids
    assert "".join(text for number, text in pieces if number == 0) == whole.text
    assert whole == cut  # greedy, and no memory of the first
    (short,) = answer(gguf, [PROMPT], 3)
    assert (len(short.ids), short.stopped) == (3, False)
    assert whole.ids[:3] == short.ids
    (stopped,) = answer(gguf, [PROMPT], 200, stop_ids=[whole.ids[2]])
    assert stopped.ids == whole.ids[:2]
    assert stopped.stopped


def test_the_divergence_of_rows_is_that_of_their_distributions() -> None:
    half, quarter = np.log([[0.5, 0.5], [0.5, 0.5]]), np.log([[0.5, 0.5], [0.25, 0.75]])
    assert llama.kl_divergence(half, half).tolist() == [0, 0]
    assert llama.kl_divergence(half, quarter).tolist() == pytest.approx([0, math.log(2) - math.log(3) / 2])


@pytest.mark.embedded
def test_a_token_outside_the_vocabulary_is_an_error(gguf: Path) -> None:
    with pytest.raises(RunError, match="a token outside the vocabulary of 49152: 99999"):
        logits(gguf, [[1, 99999]])


@pytest.mark.tiny
def test_a_file_that_is_no_gguf_is_named_with_what_llama_cpp_says(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04 not a model at all" * 10)
    with pytest.raises(RunError, match=r"model\.gguf: llama\.cpp cannot load it; it printed last: .*magic"):
        llama.tokenise(path, ["x"])


@pytest.mark.slow
def test_what_llama_cpp_printed_is_told_even_where_it_comes_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listen = Process._listen
    monkeypatch.setattr(Process, "_listen", lambda process: (time.sleep(0.5), listen(process)))
    (tmp_path / "model.gguf").write_text("no gguf at all")
    with pytest.raises(RunError, match=r"it printed last: .*magic"):
        llama.tokenise(tmp_path / "model.gguf", ["a"])


def _worker_that(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """A stand-in for the worker: llama.cpp's own crashes cannot be had on demand."""
    script = tmp_path / "worker.py"
    script.write_text(code)
    monkeypatch.setattr(llama, "WORKER", script)


@pytest.mark.slow
def test_an_abort_becomes_an_error_with_its_last_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = "import os, sys\nprint('GGML_ASSERT(n > 0) failed', file=sys.stderr, flush=True)\nos.abort()\n"
    _worker_that(monkeypatch, tmp_path, code)
    with pytest.raises(RunError) as caught:
        llama.tokenise(tmp_path / "a.gguf", ["x"])
    assert f"llama.cpp was ended by signal {signal.SIGABRT.value}; it printed last: GGML_ASSERT(n > 0) failed" in str(
        caught.value
    )


@pytest.mark.slow
def test_a_crash_amid_the_logits_is_an_error_not_a_short_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = (
        "import os, sys, json\nsys.stdin.readline()\n"
        "sys.stdout.write(json.dumps({'shape': [2, 3], 'last': True}) + '\\n' + 'xxxx')\nsys.stdout.flush()\n"
        "os.kill(os.getpid(), 11)\n"
    )
    _worker_that(monkeypatch, tmp_path, code)
    with pytest.raises(RunError, match="was ended by signal 11; it printed nothing"):
        logits(tmp_path / "a.gguf", [[1, 2]])


@pytest.mark.slow
def test_kept_files_are_loaded_once_and_one_that_died_or_was_left_amid_an_answer_is_loaded_anew(monkeypatch, tmp_path):
    code = """
import json, os, sys
for line in sys.stdin:
    asked = json.loads(line)
    if asked["do"] == "logits":
        for _ in range(9):
            sys.stdout.buffer.write(json.dumps({"shape": [1, 1], "last": True}).encode() + bytes([10]) + bytes(4))
        print(json.dumps({"done": True}), flush=True)
    elif asked["texts"] == ["die"]:
        os.abort()
    else:
        print(json.dumps({"ids": [[os.getpid()]]}), flush=True)
"""
    _worker_that(monkeypatch, tmp_path, code)
    a, b = tmp_path / "a.gguf", tmp_path / "b.gguf"

    def worker(file: Path, text: str = "who?") -> int:
        return llama.tokenise(file, [text])[0][0]

    assert worker(a) != worker(a)
    with kept():
        first, other = worker(a), worker(b)
        assert len(logits(a, [[1]])) == 9
        assert (worker(a), worker(b)) == (first, other) and first != other
        with opened(a) as one, opened(a) as two:
            assert one.process.pid == first != two.process.pid
            assert len(list(logits_each(two, [[1]]))) == 9
        second = worker(a)
        next(rows := logits_each(a, [[1]]))
        rows.close()
        third = worker(a)
        assert third not in (first, second)
        with pytest.raises(RunError, match="was ended by signal"):
            worker(a, "die")
        fourth = worker(a)
        assert fourth != third
    for pid in (first, other, second, third, fourth):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.slow
def test_a_missing_library_is_the_machines_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _worker_that(monkeypatch, tmp_path, 'print(\'{"missing": "No module named llama_cpp"}\', flush=True)\ninput()\n')
    with pytest.raises(MachineError, match=r"llama-cpp-python cannot be used \(No module.*run \./setup\.sh"):
        metadata(tmp_path / "a.gguf")


@pytest.mark.embedded
def test_the_worker_ends_with_its_parent(gguf: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom training.llama import process as llama\n"
        "process = llama.Process(Path(sys.argv[1]), vocab_only=True)\nprocess.ask({'do': 'metadata'})\n"
        "print(process.process.pid, flush=True)\nos._exit(1)\n"
    )
    root = Path(llama.__file__).resolve().parents[2]
    found = subprocess.run([sys.executable, "-c", code, gguf], cwd=root, capture_output=True, text=True, timeout=60)
    pid = int(found.stdout)
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if _is_zombie(pid):  # ended, and waiting for a process 1 that collects it
            return
        subprocess.run(["sleep", "0.1"], check=True)
    pytest.fail(f"the worker {pid} still runs")


def _is_zombie(pid: int) -> bool:
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
