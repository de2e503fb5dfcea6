"""JSON schemas tried out before an engine sees them, in a child process and within a time.

The engine's own compiler has no bounds: a property more can cost seconds, one `maxLength` can take
for ever, and a schema that it does not understand ends the process, and with it every answer. So
each schema is compiled first by the same runtime with the same vocabulary, around a model of one
layer; what takes too long, or is not understood, is refused by name, and the child alone dies of
it. What is known to be good is not tried again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import resource
import socket
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from timechat.engine.admission import BusyError
from timechat.engine.attendant import Attendant
from timechat.engine.families import compiled_folder
from timechat.engine.misfit import misfit
from timechat.engine.protocol import SchemaError
from timechat.errors import ModelError
from timechat.parent import die_with_parent

# Processor time that compiling may take: as long, once, the engine holds up all other answers.
COMPILE_S = 0.4
# After so long the child is killed, whether it computes or waits for a processor.
HANG_S = 3.0
# Longest wait for the child, where other schemas are being tried.
QUEUE_S = 6.0
START_S = 60.0
# What compiling may take beside what the runtime holds.
MEMORY_BYTES = 2 << 30
# Verdicts that are remembered.
KNOWN = 512
# What `response_format` of the type `json_object` asks for.
ANY_OBJECT = '{"type":"object"}'
_BROKEN = "the schema cannot be compiled"


class SchemaTrial:
    """Tries schemas for the engine of `spec`. The child starts with the first schema."""

    def __init__(
        self,
        spec: Mapping[str, Any],
        compile_s: float = COMPILE_S,
        hang_s: float = HANG_S,
        module: str = "timechat.engine.trial",
    ) -> None:
        folder = compiled_folder(spec["digest"], spec["bits"], Path(spec["cache"]))
        self.compile_s, self.hang_s = compile_s, hang_s
        self.name = spec["name"]
        self._child = Attendant(module, {"folder": str(folder)}, START_S)
        # What was tried, by digest, with why it was refused (empty: it was not).
        self._known: OrderedDict[str, str] = OrderedDict({_digest(ANY_OBJECT): ""})

    async def check(self, schema: str) -> None:
        """Raises SchemaError for what cannot be compiled in time or held, BusyError where other
        schemas are tried for too long."""
        key = _digest(schema)
        if key not in self._known:
            try:
                async with asyncio.timeout(QUEUE_S):
                    await self._child.turn.acquire()
            except TimeoutError:
                raise BusyError(QUEUE_S) from None
            try:
                if key not in self._known:  # asked for twice at once
                    self._keep(key, await self._try(schema))
            finally:
                self._child.turn.release()
        self._known.move_to_end(key)
        if refused := self._known[key]:
            raise SchemaError(refused)

    async def _try(self, schema: str) -> str:
        """Why the schema is refused; empty where it is good."""
        if not self._child.is_open:
            await self._open()
        slow = f"the schema takes longer than {self.compile_s:g} s to compile: make it smaller"
        try:
            found = await self._child.ask({"schema": schema}, self.hang_s)
        except TimeoutError:
            return slow
        if found is None:
            return "the schema's compiler ran out of memory or died of it: make it smaller"
        if found["refused"].startswith(_BROKEN):
            await self._child.stop()  # its pipeline keeps what a failed request held
        return found["refused"] or (slow if found["spent_s"] > self.compile_s else "")

    async def _open(self) -> None:
        with suppress(TimeoutError):
            if await self._child.open() is not None:
                return
        raise ModelError(f"{self.name} cannot hold answers to a schema: its compiler did not start")

    def _keep(self, key: str, refused: str) -> None:
        self._known[key] = refused
        while len(self._known) > KNOWN:
            self._known.popitem(last=False)

    async def stop(self) -> None:
        await self._child.stop()


def _digest(schema: str) -> str:
    return hashlib.sha256(schema.encode()).hexdigest()


def compiler(folder: Path) -> Callable[[str], None]:
    """A function that compiles a schema as the engine of the compiled model in `folder` would.

    Only the vocabulary decides what a grammar costs: the model has one narrow layer.
    """
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    real = ov.Core().read_model(folder / "openvino_model.xml")
    num_tokens = real.output(0).partial_shape[-1].get_length()
    del real
    with tempfile.TemporaryDirectory() as scratch:
        ov.save_model(_narrow(num_tokens), Path(scratch) / "openvino_model.xml")
        for file in folder.glob("openvino_*tokenizer.*"):
            (Path(scratch) / file.name).symlink_to(file)
        scheduler = genai.SchedulerConfig()
        scheduler.num_kv_blocks = 8
        pipeline = genai.ContinuousBatchingPipeline(scratch, scheduler, "CPU", {}, {})
    count = 0

    def compile_schema(schema: str) -> None:
        nonlocal count
        count += 1
        config = genai.GenerationConfig()
        config.max_new_tokens = 4  # masks are worked out with the tokens
        config.ignore_eos = True
        config.apply_chat_template = False
        held = genai.StructuredOutputConfig()
        held.json_schema = schema
        config.structured_output_config = held
        ids = ov.Tensor(np.array([[1]], dtype=np.int64))
        handle = pipeline.add_request(count, ids, config)
        while pipeline.has_non_finished_requests():
            pipeline.step()
        handle.read_all()

    return compile_schema


def _narrow(num_tokens: int) -> Any:
    """The graph of a model of one layer, with as many tokens."""
    import numpy as np

    from timechat.engine.graph import build_graph

    size = 32
    config = SimpleNamespace(
        model_type="llama", hidden_act="silu", hidden_size=size, intermediate_size=size,
        num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=size,
        rms_norm_eps=1e-5, rope_theta=1e4, tie_word_embeddings=True,
    )  # fmt: skip
    layer = "model.layers.0."
    norms = ("input_layernorm", "post_attention_layernorm")
    squares = (*(f"self_attn.{name}_proj" for name in "qkvo"), "mlp.gate_proj", "mlp.up_proj",
               "mlp.down_proj")  # fmt: skip
    weights = {
        "model.embed_tokens.weight": np.zeros((num_tokens, size), np.float32),
        "model.norm.weight": np.ones(size, np.float32),
        **{f"{layer}{name}.weight": np.ones(size, np.float32) for name in norms},
        **{f"{layer}{name}.weight": np.zeros((size, size), np.float32) for name in squares},
    }
    return build_graph(config, weights, 8)


def serve(end: socket.socket) -> None:
    """Try one schema after the other until the parent leaves."""
    lines = end.makefile("rwb")
    compile_schema: Callable[[str], None] | None = None
    for line in lines:
        row = json.loads(line)
        refused, spent = "", 0.0
        if compile_schema is None:
            compile_schema = compiler(Path(row["folder"]))
            compile_schema(ANY_OBJECT)
            _bound_memory()
        elif not (refused := misfit(row["schema"])):
            begun = time.process_time()
            refused = _compiled(row["schema"], compile_schema)
            spent = time.process_time() - begun
        lines.write(json.dumps({"spent_s": spent, "refused": refused}).encode() + b"\n")
        lines.flush()


def _compiled(text: str, compile_schema: Callable[[str], None]) -> str:
    """Why the runtime does not compile it; else empty."""
    try:
        compile_schema(text)
    except Exception as error:  # whatever the runtime throws is the caller's news
        said = str(error).strip().splitlines()[-1:] or [repr(error)]
        return f"{_BROKEN}: {_without_place(said[0])}"[:400]
    return ""


def _without_place(said: str) -> str:
    """A message of the runtime without the source file that it names first."""
    head, mark, rest = said.partition(": ")
    return rest if mark and ".cc" in head else said


def _bound_memory() -> None:
    if not Path("/proc/self/statm").is_file():
        return  # where the system does not say what is held, time is the only bound
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = held + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    die_with_parent()
    os.nice(10)  # who answers comes first
    with suppress(BrokenPipeError, ConnectionResetError):
        serve(socket.socket(fileno=int(sys.argv[1])))
