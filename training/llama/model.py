"""The inner side of process.py: one loaded model, driven through llama-cpp-python's plain C functions.

Only the worker process imports this. The C functions and not the binding's own `Llama` class, because that one cannot
switch `use_extra_bufts` off: with it, native builds took llama.cpp's AMX path and crashed on a hidden size of 576.
"""

from __future__ import annotations

import codecs
import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from training.llama import together
from training.llama.protocol import BLOCK
from training.llama.sampling import GREEDY, Sampling
from training.system import this_machine, threads

WARNING = 3  # ggml_log_level: 1 debug, 2 info, 3 warning, 4 error, 5 continues the line before


@llama_cpp.llama_log_callback
def _log(level: int, text: bytes, _: object) -> None:
    if level >= WARNING:
        sys.stderr.buffer.write(text)
        sys.stderr.buffer.flush()


def physical_cores() -> int:
    """Cores that this process may use, hyper-threads counted once: more threads than that only slow llama.cpp down."""
    cores = set()
    for cpu in this_machine.processors():
        try:
            cores.add(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return max(1, len(cores))


class Model:
    """A model and the requests it answers; their results are JSON, see process.py for the meaning of each."""

    def __init__(self, gguf: str, vocab_only: bool, stop: threading.Event | None = None, adapter: str = "") -> None:
        self.stop = stop or threading.Event()  # set: the answer that is being written ends here
        self.kept: _Context | None = None  # of `converse`, with the tokens that it has read
        self.fed: list[int] = []
        llama_cpp.llama_log_set(_log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = vocab_only
        params.use_extra_bufts = False
        params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(os.fsencode(gguf), params)
        if not self.model:
            raise ValueError("llama.cpp cannot load it")
        self.adapter = llama_cpp.llama_adapter_lora_init(self.model, os.fsencode(adapter)) if adapter else None
        if adapter and not self.adapter:
            raise ValueError(f"llama.cpp cannot put the adapter {adapter} on it")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.size = llama_cpp.llama_vocab_n_tokens(self.vocab)

    def tokenise(self, texts: Sequence[str], special: bool, send: object = None) -> dict[str, Any]:
        return {"ids": [self._ids(text, special) for text in texts]}

    def read_prompts(self, texts: Sequence[str], send: object = None) -> dict[str, Any]:
        """As common_chat_templates_apply and the tokenising after it (common/chat.cpp)."""
        flags = (llama_cpp.llama_vocab_get_add_bos(self.vocab), llama_cpp.llama_vocab_get_add_eos(self.vocab))
        ends = (llama_cpp.llama_vocab_bos(self.vocab), llama_cpp.llama_vocab_eos(self.vocab))
        bos, eos = (
            self._piece(token).decode("utf-8", "replace") if flag and token >= 0 else ""
            for flag, token in zip(flags, ends, strict=True)
        )
        return {"ids": [self._ids(text.removeprefix(bos).removesuffix(eos), True, add=True) for text in texts]}

    def metadata(self, send: object = None) -> dict[str, Any]:
        pairs: dict[str, Any] = {}
        buffer = ctypes.create_string_buffer(1 << 20)
        for index in range(llama_cpp.llama_model_meta_count(self.model)):
            texts = []
            for read in (llama_cpp.llama_model_meta_key_by_index, llama_cpp.llama_model_meta_val_str_by_index):
                read(self.model, index, buffer, len(buffer))
                texts.append(buffer.value.decode("utf-8", "replace"))
            pairs[texts[0]] = texts[1]
        one = {
            name: getattr(llama_cpp, f"llama_vocab_{name}")(self.vocab)
            for name in ("bos", "eos", "eot", "pad", "get_add_bos", "get_add_eos")
        }
        attributes = {i: llama_cpp.llama_vocab_get_attr(self.vocab, i) for i in range(self.size)}
        attributes = {i: flags for i, flags in attributes.items() if flags != llama_cpp.LLAMA_TOKEN_ATTR_NORMAL}
        end = [i for i in range(self.size) if llama_cpp.llama_vocab_is_eog(self.vocab, i)]
        one = {name.removeprefix("get_"): value for name, value in one.items()}
        return {"metadata": pairs | {"vocab": {"tokens": self.size, "end": end, "attributes": attributes, **one}}}

    def logits(
        self,
        sequences: Sequence[Sequence[int]],
        first: Sequence[int],
        send: Callable[[Mapping[str, object], bytes], None],
    ) -> dict[str, Any]:
        with _Context(self.model, max(map(len, sequences)), self.adapter) as context:
            for ids, start in zip(sequences, first, strict=True):
                if not 0 <= start < len(ids):
                    raise ValueError(f"a sequence of {len(ids)} tokens has no position {start}")
                context.clear()
                for begin in range(0, len(ids), BLOCK):
                    block = ids[begin : begin + BLOCK]
                    rows = self._decode(context, block, begin, [begin + i >= start for i in range(len(block))])
                    if rows.size:
                        send({"shape": list(rows.shape), "last": begin + BLOCK >= len(ids)}, rows.tobytes())
        return {"done": True}

    def answer(
        self,
        prompts: Sequence[str | Sequence[int]],
        max_tokens: int,
        stop_ids: Sequence[int] | None,
        stream: bool,
        send: Callable[..., None],
    ) -> dict[str, Any]:
        self.stop.clear()
        encoded = [self._ids(p, special=True) if isinstance(p, str) else list(p) for p in prompts]
        if not all(encoded):
            raise ValueError("a prompt without tokens")
        answers = []
        with _Context(self.model, max(map(len, encoded)) + max_tokens, self.adapter) as context:
            for number, ids in enumerate(encoded):

                def tell(piece: str, prompt: int = number) -> None:
                    if stream:
                        send({"prompt": prompt, "piece": piece})

                context.clear()
                answers.append(self._continue(context, ids, max_tokens, stop_ids, tell))
        return {"answers": answers}

    def answer_together(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: Sequence[int],
        stop_ids: Sequence[int] | None,
        send: object = None,
    ) -> dict[str, Any]:
        """The greedy answers to tokenised prompts, several at once; each has its own limit."""
        if not all(prompts):
            raise ValueError("a prompt without tokens")
        answers: list[dict[str, Any]] = []
        for group in together.groups([len(ids) + most for ids, most in zip(prompts, max_tokens, strict=True)]):
            chosen, limits = [prompts[n] for n in group], [max_tokens[n] for n in group]
            longest = max(len(ids) + most for ids, most in zip(chosen, limits, strict=True))
            with _Context(self.model, longest, self.adapter, len(group)) as context:

                def read(sequence: int, ids: Sequence[int], context: _Context = context) -> np.ndarray:
                    for begin in range(0, len(ids), BLOCK):
                        block = ids[begin : begin + BLOCK]
                        wanted = [begin + i == len(ids) - 1 for i in range(len(block))]
                        rows = self._decode(context, block, begin, wanted, sequence)
                    last: np.ndarray = rows[-1]
                    return last

                def step(fed: Sequence[tuple[int, int, int]], context: _Context = context) -> np.ndarray:
                    return self._feed(context, fed, [True] * len(fed))

                answers += together.grow(chosen, limits, read, step, self._ends(stop_ids), self._piece)
        return {"answers": answers}

    def _ends(self, stop_ids: Sequence[int] | None) -> Callable[[int], bool]:
        """Whether a token ends an answer: one of `stop_ids`, by default what llama.cpp itself takes for an end."""
        if stop_ids is not None:
            return set(stop_ids).__contains__
        return lambda token: bool(llama_cpp.llama_vocab_is_eog(self.vocab, token))

    def converse(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        tokens: int,
        send: Callable[..., None],
        sampling: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """One streamed answer of a talk of at most `tokens` tokens: what the prompt shares with the last one is not read again."""
        self.stop.clear()
        if self.kept is None:
            self.kept = _Context(self.model, tokens, self.adapter)
        same = 0
        while same < min(len(self.fed), len(prompt) - 1) and self.fed[same] == prompt[same]:
            same += 1
        memory = llama_cpp.llama_get_memory(self.kept.pointer)
        # A recurrent model cannot go back.
        if not llama_cpp.llama_memory_seq_rm(memory, 0, same, -1):
            self.kept.clear()
            same = 0
        self.fed = []  # until the answer is there: an error leaves nothing to build on
        choose = Sampling(**(sampling or {})).chooser()

        def tell(piece: str) -> None:
            send({"piece": piece})

        answer = self._continue(self.kept, list(prompt), max_tokens, None, tell, same, choose)
        self.fed = [] if answer["unread"] else [*prompt, *answer["ids"][:-1]]
        return answer

    def _continue(
        self,
        context: _Context,
        prompt: list[int],
        max_tokens: int,
        stop_ids: Sequence[int] | None,
        tell: Callable[[str], None],
        start: int = 0,
        choose: Callable[[np.ndarray], int] = GREEDY.chooser(),  # noqa: B008 - it keeps nothing
    ) -> dict[str, Any]:
        """The answer to a prompt of which the context has read `start` tokens. `unread`: it was stopped in the prompt."""
        for begin in range(start, len(prompt), BLOCK):
            if self.stop.is_set():
                return {"text": "", "ids": [], "stopped": False, "seconds": 0.0, "unread": True}
            block = prompt[begin : begin + BLOCK]
            wanted = [begin + i == len(prompt) - 1 for i in range(len(block))]
            rows = self._decode(context, block, begin, wanted)
        began = time.perf_counter()
        decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may span tokens
        ids: list[int] = []
        pieces: list[str] = []
        stopped = False
        while len(ids) < max_tokens and not self.stop.is_set():
            token = choose(rows[-1])
            stopped = llama_cpp.llama_vocab_is_eog(self.vocab, token) if stop_ids is None else token in stop_ids
            if stopped:
                break
            ids.append(token)
            if piece := decoder.decode(self._piece(token)):
                pieces.append(piece)
                tell(piece)
            if len(ids) < max_tokens:
                rows = self._decode(context, [token], len(prompt) + len(ids) - 1, [True])
        text = "".join(pieces) + decoder.decode(b"", final=True)
        seconds = time.perf_counter() - began
        return {"text": text, "ids": ids, "stopped": bool(stopped), "seconds": seconds, "unread": False}

    def _decode(
        self, context: _Context, ids: Sequence[int], position: int, wanted: Sequence[bool], sequence: int = 0
    ) -> np.ndarray:
        """Feed tokens; give the logits [wanted tokens, vocabulary] after those that are wanted (a copy)."""
        return self._feed(context, [(sequence, token, position + i) for i, token in enumerate(ids)], wanted)

    def _feed(self, context: _Context, fed: Sequence[tuple[int, int, int]], wanted: Sequence[bool]) -> np.ndarray:
        """The same for tokens of several sequences: each with its sequence and its position in that."""
        if any(not 0 <= token < self.size for _, token, _ in fed):
            raise ValueError(f"a token outside the vocabulary of {self.size}: {max(token for _, token, _ in fed)}")
        batch = context.batch
        batch.n_tokens = len(fed)
        for i, (sequence, token, position) in enumerate(fed):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, position, 1, sequence
            batch.logits[i] = wanted[i]
        if code := llama_cpp.llama_decode(context.pointer, batch):
            raise ValueError(f"llama_decode gave {code} at token {fed[0][2]} of {context.size}")
        count = sum(wanted)
        if not count:
            return np.empty((0, self.size), np.float32)
        rows = llama_cpp.llama_get_logits(context.pointer)
        copy: np.ndarray = np.ctypeslib.as_array(rows, (count, self.size)).copy()
        return copy

    def _ids(self, text: str, special: bool, add: bool = False) -> list[int]:
        """The tokens of a text; `add`: with what the file's flags put around one."""
        raw = text.encode("utf-8")
        if not raw:
            return []
        # SentencePiece puts a space in front; never more tokens than bytes otherwise.
        room = len(raw) + 16
        ids = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self.vocab, raw, len(raw), ids, room, add, special)
        if count < 0:
            ids = (llama_cpp.llama_token * -count)()
            count = llama_cpp.llama_tokenize(self.vocab, raw, len(raw), ids, -count, add, special)
        return list(ids[:count])

    def _piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        count = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, True)
        if count < 0:
            buffer = ctypes.create_string_buffer(-count)
            count = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, True)
        return buffer.raw[:count]


class _Context:
    """A context for sequences (one, or several at once) of up to `tokens` tokens each, with the batch that feeds it."""

    def __init__(self, model: object, tokens: int, adapter: object = None, sequences: int = 1) -> None:
        params = llama_cpp.llama_context_default_params()
        self.size = max(tokens, 8)
        # Each sequence has its own part.
        params.n_ctx, params.n_seq_max, params.kv_unified = self.size * sequences, sequences, False
        params.n_batch = params.n_ubatch = BLOCK
        params.n_threads = params.n_threads_batch = threads.allowed(physical_cores())
        params.no_perf = True
        self.pointer = llama_cpp.llama_init_from_model(model, params)
        if not self.pointer:
            raise ValueError(f"llama.cpp cannot make a context of {tokens} tokens")
        if adapter:
            one, scale = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter), (ctypes.c_float * 1)(1.0)
            if llama_cpp.llama_set_adapters_lora(self.pointer, one, 1, scale):
                raise ValueError("llama.cpp does not take the adapter")
        self.batch = llama_cpp.llama_batch_init(BLOCK, 0, 1)

    def __enter__(self) -> _Context:
        return self

    def __exit__(self, *_: object) -> None:
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.pointer)

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.pointer), True)
