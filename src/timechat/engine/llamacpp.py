"""llama.cpp's C interface, as far as an engine needs it: one context of many sequences.

A sequence is a number under which tokens lie in the cache of keys and values. All sequences share
its cells (a *unified* cache), so that a long conversation may take what short ones leave, and a
common beginning is shared by noting down its second owner. Attention reads every cell that is in
use and skips those of others, which is why what nobody continues is better taken out (`save`).
What is decoded when is `llama`'s question.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import llama_cpp  # pyright: ignore[reportMissingImports]  # an extra that compiles for minutes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from timechat.errors import ModelError

lib = cast(Any, llama_cpp)
# Cells come in multiples of this many.
_PADDING = 256
_ERROR = 4  # GGML_LOG_LEVEL_ERROR

_said: list[str] = []


@lib.llama_log_callback
def _listen(level: int, text: bytes, _: Any) -> None:
    """Errors are kept for the exception that follows; nothing reaches the terminal."""
    if level == _ERROR:
        _said.append(text.decode(errors="replace").strip())


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens that go on a sequence at `start`; `asked`: what comes after the last is wanted."""

    sequence: int
    start: int
    tokens: Sequence[int]
    asked: bool


class LlamaModel:
    """The weights of a GGUF file, mapped into memory. Raises ModelError."""

    def __init__(self, file: Path) -> None:
        _said.clear()
        lib.llama_log_set(_listen, None)
        lib.llama_backend_init()
        self.pointer = lib.llama_model_load_from_file(
            str(file).encode(), lib.llama_model_default_params()
        )
        if not self.pointer:
            why = _said[0] if _said else "no reason given"
            raise ModelError(f"llama.cpp cannot read {file.name}: {why}")
        vocabulary = lib.llama_model_get_vocab(self.pointer)
        self.num_rows = int(lib.llama_vocab_n_tokens(vocabulary))
        self.window = int(lib.llama_model_n_ctx_train(self.pointer))

    @property
    def token_bytes(self) -> int:
        """What a token's keys and values take, in 16 bits."""
        heads = int(lib.llama_model_n_head_kv(self.pointer))
        layers = int(lib.llama_model_n_layer(self.pointer))
        size = self._meta("attention.key_length")
        if not size:
            size = lib.llama_model_n_embd(self.pointer) // lib.llama_model_n_head(self.pointer)
        return 2 * 2 * layers * heads * int(size)

    def _meta(self, name: str) -> int:
        family = self._text("general.architecture")
        return int(self._text(f"{family}.{name}") or 0)

    def _text(self, key: str) -> str:
        place = ctypes.create_string_buffer(256)
        size = lib.llama_model_meta_val_str(self.pointer, key.encode(), place, len(place))
        return place.value.decode() if size > 0 else ""


class LlamaContext:
    """A cache of `num_cells` tokens and what is worked out over it."""

    def __init__(
        self, model: LlamaModel, num_cells: int, num_sequences: int, step: int, threads: int
    ) -> None:
        asked = lib.llama_context_default_params()
        asked.n_ctx = -(-num_cells // _PADDING) * _PADDING
        asked.n_batch = asked.n_ubatch = self.step = step
        asked.n_seq_max = asked.n_outputs_max = num_sequences
        asked.n_threads = asked.n_threads_batch = threads
        asked.kv_unified = True
        # It alone passes over the cells of other sequences (LAB.md).
        asked.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        asked.no_perf = True
        self._model = model  # the context reads its weights
        self._context = lib.llama_init_from_model(model.pointer, asked)
        if not self._context:
            why = _said[-1] if _said else "no reason given"
            raise ModelError(f"llama.cpp gives no cache of {num_cells} tokens: {why}")
        self._memory = lib.llama_get_memory(self._context)
        self._batch = lib.llama_batch_init(step, 0, 1)
        self._tokens = self._column(self._batch.token)
        self._places = self._column(self._batch.pos)
        self._asked = self._column(self._batch.logits)
        self._column(self._batch.n_seq_id)[:] = 1

    def _column(self, pointer: Any) -> NDArray[Any]:
        return np.ctypeslib.as_array(pointer, (self.step,))

    def decode(self, parts: Sequence[Part]) -> list[Tensor]:
        """Read all parts (`step` tokens at most) together: a row of logits for each that asked.

        The rows lie in llama.cpp's own memory until the next call.
        """
        end = 0
        rows: list[int] = []
        for part in parts:
            begin, end = end, end + len(part.tokens)
            self._tokens[begin:end] = part.tokens
            self._places[begin:end] = range(part.start, part.start + len(part.tokens))
            self._asked[begin:end] = 0
            for row in range(begin, end):
                self._batch.seq_id[row][0] = part.sequence
            if part.asked:
                self._asked[end - 1] = 1
                rows.append(end - 1)
        self._batch.n_tokens = end
        if status := lib.llama_decode(self._context, self._batch):
            why = _said[-1] if _said else "no reason given"
            raise RuntimeError(f"llama.cpp could not go on ({status}): {why}")
        return [self._row(row) for row in rows]

    def _row(self, row: int) -> Tensor:
        logits = lib.llama_get_logits_ith(self._context, row)
        return torch.from_numpy(np.ctypeslib.as_array(logits, (self._model.num_rows,)))

    def cut(self, sequence: int, start: int) -> bool:
        """Forget its tokens from `start` on; False where that cannot be done, and all are gone."""
        if lib.llama_memory_seq_rm(self._memory, sequence, start, -1):
            return True
        lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return False

    def share(self, source: int, target: int, end: int) -> None:
        """Let an empty sequence begin as another does, up to `end`: the cells have two owners."""
        lib.llama_memory_seq_cp(self._memory, source, target, 0, end)

    def save(self, sequence: int) -> NDArray[np.uint8]:
        """What the sequence holds, as bytes that `load` takes."""
        size = int(lib.llama_state_seq_get_size(self._context, sequence))
        state = np.empty(size, dtype=np.uint8)
        written = lib.llama_state_seq_get_data(self._context, _bytes(state), size, sequence)
        return state[:written]

    def load(self, sequence: int, state: NDArray[np.uint8]) -> bool:
        """Fill an empty sequence; False where there is no room, and it stays empty."""
        if lib.llama_state_seq_set_data(self._context, _bytes(state), state.size, sequence):
            return True
        self.cut(sequence, 0)
        return False

    def close(self) -> None:
        lib.llama_batch_free(self._batch)
        lib.llama_free(self._context)


def _bytes(state: NDArray[np.uint8]) -> Any:
    return state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
