"""A `Core` on openvino-genai: fast on CPUs, paged cache, prefixes reused between turns.

The model is compiled once into a folder of the cache (`graph.py`) that is named by its digest, and
read from there ever after. One pipeline serves one model: its prefix cache knows tokens only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import openvino as ov
import openvino_genai as genai
from openvino_tokenizers import convert_tokenizer

from timechat.engine.families import compiled_folder
from timechat.engine.graph import Bits, build_graph
from timechat.engine.protocol import Capabilities, Delta, Ending, Request
from timechat.model.adapt import merge
from timechat.model.load import Source, load
from timechat.model.machine import free_memory
from timechat.model.number_format import has_fast_bf16
from timechat.store.files import read_json, write_json
from timechat.store.folders import build_folder

# Tokens of one cache block on a CPU.
BLOCK = 32
# A long prompt is read in parts of this size, so that running answers do not stall.
CHUNK = 256
# The share of free memory that the cache of keys and values may take, and its most in windows.
CACHE_SHARE = 0.25
CACHE_WINDOWS = 8


def compiled(source: Source, digest: str, bits: Bits, cache: Path) -> Path:
    """The folder of the compiled model, built when it is not there yet. Raises ModelError."""
    folder = compiled_folder(digest, bits, cache)
    if (folder / "shape.json").is_file():
        return folder
    loaded = load(source)
    merge(loaded.model)
    weights = {
        name: value.detach().float().cpu().numpy()
        for name, value in loaded.model.state_dict().items()
    }
    config: Any = loaded.model.config
    model = build_graph(config, weights, bits)
    heads = int(config.num_key_value_heads)
    size = int(getattr(config, "head_dim", 0) or config.hidden_size // config.num_attention_heads)
    words, back = cast(Any, convert_tokenizer)(loaded.tokenizer, with_detokenizer=True)
    with build_folder(folder) as beside:
        ov.save_model(model, beside / "openvino_model.xml", compress_to_fp16=False)
        ov.save_model(words, beside / "openvino_tokenizer.xml")
        ov.save_model(back, beside / "openvino_detokenizer.xml")
        shape = {
            "window": int(config.max_position_embeddings),
            # Keys and values in 16 bits: at 500 tokens a tenth faster to attend to than in 8,
            # which have to be unpacked at every step, and nearer to what was evaluated.
            "token_bytes": 2 * int(config.num_hidden_layers) * heads * size * 2,
        }
        write_json(beside / "shape.json", shape)
    return folder


@dataclass
class _Running:
    handle: Any
    request: Request
    count: int = 0


class OpenVinoCore:
    """Steps a continuous-batching pipeline. Seeds, limits and stops are set for each request."""

    def __init__(self, folder: Path, precision: str | None = None) -> None:
        shape = read_json(folder / "shape.json")
        affordable = int(free_memory() * CACHE_SHARE / shape["token_bytes"])
        kv_tokens = min(CACHE_WINDOWS * shape["window"], affordable) // BLOCK * BLOCK
        window = min(shape["window"], kv_tokens - BLOCK)
        short = f"window cut from {shape['window']}: memory" if window < shape["window"] else ""
        scheduler = genai.SchedulerConfig()
        # One block more for each request: its last one is seldom full.
        scheduler.num_kv_blocks = kv_tokens // BLOCK + 64
        scheduler.max_num_batched_tokens = CHUNK
        scheduler.enable_prefix_caching = True
        hint = precision or ("bf16" if has_fast_bf16() else "f32")
        properties = {
            "INFERENCE_PRECISION_HINT": hint,
            "KV_CACHE_PRECISION": "bf16" if hint == "bf16" else "f16",
            # Activations stay as they are: 8 bits doubled the divergence from fp32 (LAB.md).
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        }
        self._pipeline = genai.ContinuousBatchingPipeline(
            str(folder), scheduler, "CPU", properties, {}
        )
        self.capabilities = Capabilities(
            "openvino",
            window,
            kv_tokens,
            logprobs=0,
            schema=True,
            prefix_cache=True,
            note=short,
            kv_bytes=scheduler.num_kv_blocks * BLOCK * shape["token_bytes"],
        )
        self._running: dict[int, _Running] = {}
        self._unread: list[tuple[int, Delta]] = []

    @property
    def busy(self) -> bool:
        return bool(self._unread) or bool(self._pipeline.has_non_finished_requests())

    def add(self, key: int, request: Request) -> None:
        room = request.room(self.capabilities.window)
        if room <= 0:
            self._unread.append((key, Delta(None, Ending.LENGTH)))
            return
        ids = ov.Tensor(np.array([list(request.prompt)], dtype=np.int64))
        handle = self._pipeline.add_request(key, ids, _config(request, room))
        self._running[key] = _Running(handle, request)

    def cancel(self, key: int) -> None:
        if (one := self._running.pop(key, None)) is not None:
            one.handle.cancel()
            if self._pipeline.has_non_finished_requests():
                self._step()  # the pipeline frees what was cancelled when it next steps

    def step(self) -> list[tuple[int, Delta]]:
        out, self._unread = self._unread, []
        if self._pipeline.has_non_finished_requests():
            self._step()
        out += self._unread
        self._unread = []
        return out

    def _step(self) -> None:
        self._pipeline.step()
        for key, one in list(self._running.items()):
            while key in self._running and one.handle.can_read():
                for output in one.handle.read().values():
                    self._take(key, one, output)

    def _take(self, key: int, one: _Running, output: Any) -> None:
        for place, token in enumerate(output.generated_ids):
            if token in one.request.stop:
                self._end(key, Ending.STOP)
                return
            one.count += 1
            value = float(output.generated_log_probs[place])
            logprob = None if one.request.logprobs is None else min(value, 0.0)
            self._unread.append((key, Delta(int(token), logprob=logprob)))
        reason = output.finish_reason
        if reason == genai.GenerationFinishReason.LENGTH:
            self._end(key, Ending.LENGTH)
        elif reason != genai.GenerationFinishReason.NONE:
            self._end(key, Ending.STOP)

    def _end(self, key: int, ending: Ending) -> None:
        del self._running[key]
        self._unread.append((key, Delta(None, ending)))


def _config(request: Request, room: int) -> Any:
    sampling = request.sampling
    config = genai.GenerationConfig()
    config.max_new_tokens = room
    config.apply_chat_template = False
    config.stop_token_ids = set(request.stop)
    config.include_stop_str_in_output = True
    # Only the request's own stop tokens end it, not one that the pipeline knows of.
    config.ignore_eos = not request.stop
    config.presence_penalty = sampling.presence_penalty
    config.frequency_penalty = sampling.frequency_penalty
    config.logprobs = 0 if request.logprobs is None else 1
    if sampling.temperature > 0:
        config.do_sample = True
        config.temperature = sampling.temperature
        config.top_p = sampling.top_p
        config.top_k = 0
        # Its default seed is the same for all: without this every sample would be one sample.
        config.rng_seed = sampling.seed & 0x7FFFFFFF
    if request.schema is not None:
        held = genai.StructuredOutputConfig()
        held.json_schema = request.schema
        config.structured_output_config = held
    return config
