"""What a model answered, kept in the user's cache and not asked again.

One file for a model (the digests of its base and its adapter, the adapter's strength), how it
computes and the code that does; in it one value for each question, under a digest of the question's
own token ids: another template, tokenizer or wording is another question. Answers are kept in the
company in which they were given (rounding depends on it) and under their decoding. The file is
written as the asking goes on, so that an evaluation which was stopped goes on where it was.
Whatever in the file is not exactly what this file writes is not used and not mended: the whole file
is left aside, said, and written anew.
`timechat doctor` names the folder; deleting it costs only time.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
import transformers

from timechat.data.pack import Example
from timechat.engine.greedy import in_batches
from timechat.engine.torch import TorchEngine
from timechat.evals.questions.run import Choosing, Likelihood, Progress, choose, likelihoods
from timechat.evals.questions.suite import Choice, General
from timechat.model.load import Loaded, digest_folder
from timechat.model.paths import path_of
from timechat.model.starter import cache_folder
from timechat.stages.environment import code_digest
from timechat.stages.watch import Watcher
from timechat.store.files import write_text

FORMAT = 2
MAX_BYTES = 16_000_000
# About 5 MB: every change of this package's own code makes its bases unknown again.
MAX_FILES = 32
# Choices that are asked between two writings.
PART = 256

Values = dict[str, list[float]]
Answers = dict[str, tuple[float, list[list[int]]]]
"""Seconds that a batch took, and its answers."""
Results = tuple[list[Choosing], list[Likelihood], list[Likelihood]]


class AnswerCache:
    """The known answers of one model, which must be exactly what its files hold, its adapter (if it
    has one) at `strength` of what was trained."""

    def __init__(self, loaded: Loaded, watcher: Watcher, strength: float = 1.0) -> None:
        self.loaded, self.watcher = loaded, watcher
        self.key = _key(loaded, strength)
        name = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()
        self.file = answers_folder() / f"{name}.json"
        self.choices, self.texts, self.answers = self._read()

    def covers(self, general: General) -> bool:
        """Whether nothing of `general` would have to be asked."""
        texts = (*general.prose, *general.answers)
        return all(map(self._knows_choice, general.choices)) and all(map(self._knows_text, texts))

    def ask(self, general: General, tick: Progress) -> Results:
        """Every result of `general`: remembered, or asked now and remembered from now on."""
        choices = [c for c in general.choices if not self._knows_choice(c)]
        prose, answers = (
            tuple(e for e in texts if not self._knows_text(e))
            for texts in (general.prose, general.answers)
        )
        count = len(choices) + len(prose) + len(answers)
        tick(len(general.choices) + len(general.prose) + len(general.answers) - count)
        parts = [
            General(tuple(choices[i : i + PART]), (), ()) for i in range(0, len(choices), PART)
        ]
        if prose or answers:
            parts[-1:] = [General(parts[-1].choices if parts else (), prose, answers)]
        for part in parts:
            self._learn(part, ask_general(self.loaded, part, tick))
        return (
            [self._choosing(c) for c in general.choices],
            [self._likelihood(e) for e in general.prose],
            [self._likelihood(e) for e in general.answers],
        )

    def rate(self, examples: Sequence[Example], tick: Progress) -> list[Likelihood]:
        """The likelihood of every row, as `evals.questions.run.likelihoods` gives it."""
        unknown = tuple(e for e in examples if not self._knows_text(e))
        tick(len(examples) - len(unknown))
        if unknown:
            found = likelihoods(self.loaded.model, unknown, tick)
            self._learn(General((), unknown, ()), ([], found, []))
        return [self._likelihood(e) for e in examples]

    def answer(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, tick: Progress
    ) -> tuple[list[list[int]], float]:
        """The likeliest continuation of each prompt, as the engine's own `answers` gives it, and
        the seconds that they took when they were asked."""
        engine, stop = TorchEngine(self.loaded.model), self.loaded.renderer.stop_ids
        out: list[list[int]] = [[] for _ in prompts]
        total = 0.0
        for members in in_batches(self.loaded.model, prompts):
            together = [list(prompts[i]) for i in members]
            key = _print(["answers", together, max_new_tokens, sorted(stop)])
            if key not in self.answers or len(self.answers[key][1]) != len(members):
                started = time.perf_counter()
                found = engine.answers(together, max_new_tokens, stop)
                self.answers[key] = (round(time.perf_counter() - started, 3), found)
                self._write()
            seconds, found = self.answers[key]
            total += seconds
            for i, ids in zip(members, found, strict=True):
                out[i] = ids
            tick(len(members))
        return out, total

    def _knows_choice(self, choice: Choice) -> bool:
        return len(self.choices.get(print_choice(choice), ())) == len(choice.answers)

    def _knows_text(self, example: Example) -> bool:
        found = self.texts.get(print_text(example))
        return found is not None and found[1] == example.num_targets

    def _learn(self, asked: General, found: Results) -> None:
        for choice, row in zip(asked.choices, found[0], strict=True):
            self.choices[print_choice(choice)] = list(row.values)
        texts = zip((*asked.prose, *asked.answers), (*found[1], *found[2]), strict=True)
        for example, text in texts:
            self.texts[print_text(example)] = [text.nats, text.num_tokens, text.hits]
        self._write()

    def _write(self) -> None:
        content = {
            "key": self.key,
            "choices": self.choices,
            "texts": self.texts,
            "answers": self.answers,
        }
        with suppress(OSError):  # a read-only cache only costs time
            write_text(self.file, json.dumps(content))
            _forget_oldest(self.file.parent)

    def _choosing(self, choice: Choice) -> Choosing:
        values = tuple(self.choices[print_choice(choice)])
        return Choosing(choice.id, choice.cluster, choice.tag, values)

    def _likelihood(self, example: Example) -> Likelihood:
        nats, num_tokens, hits = self.texts[print_text(example)]
        return Likelihood(example.id, nats, int(num_tokens), int(hits))

    def _read(self) -> tuple[Values, Values, Answers]:
        try:
            if self.file.stat().st_size > MAX_BYTES:
                raise ValueError("too large")
            content: Any = json.loads(self.file.read_bytes())
            return _checked(content, self.key)
        except FileNotFoundError:
            return {}, {}, {}
        except (OSError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
            self.watcher.say(f"{self.file} is not what was left there ({error}): asking again")
            return {}, {}, {}


def ask_general(loaded: Loaded, general: General, tick: Progress) -> Results:
    """Ask the model itself."""
    return (
        choose(loaded.model, general.choices, tick),
        likelihoods(loaded.model, general.prose, tick) if general.prose else [],
        likelihoods(loaded.model, general.answers, tick) if general.answers else [],
    )


def answers_folder() -> Path:
    return cache_folder() / "answers"


def print_choice(choice: Choice) -> str:
    return _print(["choice", choice.prompt, choice.answers])


def print_text(example: Example) -> str:
    return _print(["text", example.ids, example.weights])


def _print(content: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _forget_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime)
    for file in files[:-MAX_FILES]:
        file.unlink(missing_ok=True)


def _key(loaded: Loaded, strength: float) -> dict[str, Any]:
    """Everything that the numbers depend on, beside the questions."""
    adapter = loaded.source.adapter
    return {
        "format": FORMAT,
        "base": digest_folder(loaded.source.folder),
        "adapter": digest_folder(adapter) if adapter is not None else "",
        "strength": strength,
        "dtype": str(loaded.model.dtype),
        "device": loaded.model.device.type,
        "read": path_of(loaded.model).name,
        "code": code_digest(),
        "libraries": [torch.__version__, transformers.__version__],
    }


def _checked(content: Any, key: dict[str, Any]) -> tuple[Values, Values, Answers]:
    """The values of a file of ours. Raises ValueError for anything else."""
    if not isinstance(content, dict):
        raise ValueError("no object")
    named = cast(dict[str, Any], content)
    if set(named) != {"key", "choices", "texts", "answers"} or named["key"] != key:
        raise ValueError("another model's")
    choices, texts = _numbers(named["choices"]), _numbers(named["texts"])
    if any(not row or max(row) > 0 for row in choices.values()):
        raise ValueError("a probability above one")
    for row in texts.values():
        if len(row) != 3 or not 0 <= row[2] <= row[1] or row[0] < 0 or row[1] < 1:
            raise ValueError("a likelihood that cannot be")
    return choices, texts, _token_ids(named["answers"])


def _numbers(found: Any) -> Values:
    if not isinstance(found, dict):
        raise ValueError("no values")
    for row in cast(dict[str, Any], found).values():
        if not isinstance(row, list):
            raise ValueError("no list of numbers")
        numbers = cast(list[Any], row)
        if not all(type(v) in (int, float) and math.isfinite(v) for v in numbers):
            raise ValueError("a value is no number")
    return cast(Values, found)


def _token_ids(found: Any) -> Answers:
    if not isinstance(found, dict):
        raise ValueError("no answers")
    out: Answers = {}
    for key, batch in cast(dict[str, Any], found).items():
        seconds, rows = cast(tuple[Any, Any], batch)
        if type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
            raise ValueError("an answer took no time that can be")
        if not all(isinstance(row, list) for row in rows):
            raise ValueError("no list of answers")
        ids = [token for row in rows for token in row]
        if not all(type(token) is int and token >= 0 for token in ids):
            raise ValueError("an answer is no list of tokens")
        out[key] = (float(seconds), rows)
    return out
