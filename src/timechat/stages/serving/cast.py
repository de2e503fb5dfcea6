"""The GGUF file that the llama engine reads: merged weights, written once, kept by digest.

It is written as `export` writes one, but for the vocabulary, since an engine is given token ids:
so models are served whose tokenizer llama.cpp has no name for. What it answers is held against the
evaluated model by `vet`, like any engine's. As a program it writes for a server that must not
stand still: in, one JSON object with the `subject` on standard input.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

from transformers import AutoConfig, PretrainedConfig

from timechat.engine.families import Bits, gguf_file
from timechat.errors import ExportError, ModelError, TimeChatError
from timechat.export.families import family_of
from timechat.export.ggufile import write_gguf
from timechat.export.rotary import rotary_keys
from timechat.export.weights import Weights
from timechat.model.load import Source
from timechat.stages.exporting.export import carry_activation
from timechat.stages.exporting.hearing import bits_of
from timechat.stages.serving.vet import Subject, read_subject, run_child
from timechat.store.folders import build_folder

QUANTISATIONS: dict[Bits, str] = {8: "q8_0", 4: "q4_1"}


def unreadable(source: Source) -> str:
    """Why llama.cpp could not answer like this model; empty where it can."""
    config = cast(PretrainedConfig, AutoConfig.from_pretrained(source.folder))
    try:
        family_of(config)
        rotary_keys(config)
    except ExportError as error:
        first, *_ = str(error).split(": ")
        return first
    if bits := bits_of(source):
        return f"the adapter was evaluated beside its base in {bits} bits, which no file here holds"
    return ""


async def cast_in_child(subject: Subject) -> None:
    """Write the file, unless it is there. Raises ModelError."""
    if not gguf_file(subject.digest, subject.bits, subject.cache).is_file():
        status, last = await run_child("timechat.stages.serving.cast", subject)
        if status:
            raise ModelError(f"the GGUF for llama.cpp could not be written: {last}")


def write_cast(subject: Subject) -> Path:
    """The file at its place in the cache. Raises ExportError."""
    file = gguf_file(subject.digest, subject.bits, subject.cache)
    source = Source("served", subject.folder, subject.adapter)
    weights = Weights(source.folder, source.adapter)
    config = cast(PretrainedConfig, AutoConfig.from_pretrained(source.folder))
    carry_activation("gguf", source, config, weights)
    quantisation = QUANTISATIONS[8 if subject.bits == 8 else 4]
    with build_folder(file.parent) as beside:
        write_gguf(beside / file.name, weights, config, None, quantisation, subject.digest[:24])
    return file


def main() -> None:
    given: dict[str, Any] = json.loads(sys.stdin.read())
    try:
        write_cast(read_subject(given["subject"]))
    except (TimeChatError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
