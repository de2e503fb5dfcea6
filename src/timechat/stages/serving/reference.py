"""The child process that hears an evaluated model for `vet`, and leaves what it said in the cache.

In: one JSON object with the `subject` on standard input. It exists so that a server never holds
the weights of a model that another process answers for.
"""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import replace

from timechat.export import gate, noise
from timechat.export.tolerance import tolerance_for
from timechat.model.load import Source, load
from timechat.model.number_format import has_fast_bf16
from timechat.stages.exporting import hearing
from timechat.stages.serving.vet import Subject, Wanted, keep_answers, read_subject

# Prompts, their tokens in all, and tokens of an answer: enough to tell a wrong graph, little to
# wait for.
NUM_PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS = 6, 900, 24


def hear(subject: Subject) -> Wanted:
    """The evaluated model's greedy answers, and what the engine's rounding alone does to them."""
    loaded = load(Source("evaluated", subject.folder, subject.adapter))
    hearing.widen(loaded)
    rows = hearing.held_out_rows(subject.run)
    probes = hearing.make_probes(rows, loaded.renderer, NUM_PROMPTS, PROMPT_TOKENS)
    questions = [replace(probe, answer=()) for probe in probes]
    stops = loaded.renderer.stop_ids
    lines = gate.hear(loaded.model, questions, stops, ANSWER_TOKENS)
    noise.fold(loaded.model)
    noise.roughen(loaded.model, noise.steps_of_engine(loaded.model, subject.bits))
    if has_fast_bf16():  # what the engine then computes in
        noise.roughen(loaded.model, noise.steps_of_bf16(loaded.model), seed=1)
    allowed = tolerance_for(lines, gate.follow(loaded.model, lines))
    del loaded
    gc.collect()
    return Wanted(tuple(lines), allowed, tuple(sorted(stops)))


def main() -> None:
    subject = read_subject(json.loads(sys.stdin.read())["subject"])
    keep_answers(subject, hear(subject))


if __name__ == "__main__":
    main()
