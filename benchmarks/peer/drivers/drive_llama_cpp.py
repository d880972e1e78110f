"""llama.cpp through llama-cpp-python's binding of its C API: one KV stream a sequence, argmax by numpy."""

from __future__ import annotations

import ctypes
import time
from typing import Any

import llama_cpp as llama
import numpy as np
import protocol

FLASH = {"auto": -1, "off": 0, "on": 1}
UBATCH = 512


@llama.llama_log_callback
def _silent(level: int, text: bytes, data: Any) -> None:
    """Its log is of every tensor."""


class LlamaCpp:
    """A model, and a context for each number of sequences.

    Settings: ``flash``, auto, off or on.
    """

    packages = ("llama-cpp-python",)

    def __init__(self, given: dict[str, Any]) -> None:
        llama.llama_log_set(_silent, None)
        llama.llama_backend_init()
        self._given = given
        self._model = llama.llama_load_model_from_file(
            given["model"].encode(), llama.llama_model_default_params()
        )
        assert self._model, f"llama.cpp does not load {given['model']}"
        self._vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        self._made: tuple[tuple[int, int], Any] | None = None
        self._batch = llama.llama_batch_init(UBATCH, 0, 1)

    def prompt(self, tokens: int) -> float:
        context = self._context(1, tokens + 32)
        self._clear(context)
        self._fill([(t, p, 0, p == tokens - 1) for p, t in enumerate(protocol.tokens(tokens))])
        begun = time.perf_counter()
        self._decode(context)
        self._choose(context, [tokens - 1])
        return time.perf_counter() - begun

    def decode(self, batch: int, context: int, steps: int) -> float:
        held = self._context(batch, context + steps + 32)
        self._clear(held)
        current = []
        for sequence in range(batch):
            ids = protocol.tokens(context, sequence)
            self._fill([(t, p, sequence, p == context - 1) for p, t in enumerate(ids)])
            self._decode(held)
            current += self._choose(held, [context - 1])
        begun = time.perf_counter()
        for step in range(steps):
            self._fill([(t, context + step, s, True) for s, t in enumerate(current)])
            self._decode(held)
            current = self._choose(held, range(batch))
        return time.perf_counter() - begun

    def _context(self, sequences: int, length: int) -> Any:
        """A context for so many sequences, each with a KV stream of its own."""
        if self._made is not None:
            if self._made[0] == (sequences, length):
                return self._made[1]
            llama.llama_free(self._made[1])
        params = llama.llama_context_default_params()
        params.n_ctx = sequences * (-(-length // 256) * 256)
        params.n_batch = params.n_ubatch = UBATCH
        params.n_seq_max = sequences
        params.kv_unified = False
        params.n_threads = params.n_threads_batch = self._given["threads"]
        params.flash_attn_type = FLASH[self._given["flash"]]
        params.no_perf = True
        made = llama.llama_new_context_with_model(self._model, params)
        assert made, "llama.cpp makes no context"
        self._made = ((sequences, length), made)
        return made

    def _clear(self, context: Any) -> None:
        llama.llama_memory_clear(llama.llama_get_memory(context), True)

    def _fill(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Token, position, sequence, and whether its logits are wanted."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = wanted

    def _decode(self, context: Any) -> None:
        failed = llama.llama_decode(context, self._batch)
        assert failed == 0, f"llama_decode says {failed}"

    def _choose(self, context: Any, rows: Any) -> list[int]:
        found = []
        for row in rows:
            logits = llama.llama_get_logits_ith(context, row)
            array = np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (self._vocab,))
            found.append(int(array.argmax()))
        return found


if __name__ == "__main__":
    protocol.serve(LlamaCpp)
