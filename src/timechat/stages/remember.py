"""What a base answered to the general suite, kept in the user's cache and not asked again.

One file for a base (its folder's digest), how it computes and the code that does; in it one
value for each question, under a digest of the question's own token ids: another template, tokenizer
or wording is another question. Whatever in the file is not exactly what this file writes is not
used and not mended: the whole file is left aside, said, and written anew.
`timechat doctor` names the folder; deleting it costs only time.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
import transformers

from timechat.data.pack import Example
from timechat.evals.run import Choosing, Likelihood, Progress, choose, likelihoods
from timechat.evals.suite import Choice, General
from timechat.model.load import Loaded, digest_folder
from timechat.model.paths import path_of
from timechat.model.starter import cache_folder
from timechat.stages.environment import code_digest
from timechat.stages.watch import Watcher
from timechat.store import write_text

FORMAT = 1
MAX_BYTES = 16_000_000
# About 5 MB: every change of this package's own code makes its bases unknown again.
MAX_FILES = 32

Values = dict[str, list[float]]
Results = tuple[list[Choosing], list[Likelihood], list[Likelihood]]


class Memory:
    """The known answers of one base."""

    def __init__(self, loaded: Loaded, watcher: Watcher) -> None:
        self.loaded, self.watcher = loaded, watcher
        self.key = _key(loaded)
        name = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()
        self.file = answers_folder() / f"{name}.json"
        self.choices, self.texts = self._read()

    def covers(self, general: General) -> bool:
        """Whether nothing of `general` would have to be asked."""
        texts = (*general.prose, *general.answers)
        return all(map(self._knows_choice, general.choices)) and all(map(self._knows_text, texts))

    def ask(self, general: General, tick: Progress) -> Results:
        """Every result of `general`: remembered, or asked now and remembered from now on."""
        unknown = General(
            tuple(c for c in general.choices if not self._knows_choice(c)),
            tuple(e for e in general.prose if not self._knows_text(e)),
            tuple(e for e in general.answers if not self._knows_text(e)),
        )
        count = len(unknown.choices) + len(unknown.prose) + len(unknown.answers)
        tick(len(general.choices) + len(general.prose) + len(general.answers) - count)
        if count:
            self._learn(unknown, ask_general(self.loaded, unknown, tick))
        return (
            [self._choosing(c) for c in general.choices],
            [self._likelihood(e) for e in general.prose],
            [self._likelihood(e) for e in general.answers],
        )

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
        content = {"key": self.key, "choices": self.choices, "texts": self.texts}
        with suppress(OSError):  # a read-only cache only costs time
            write_text(self.file, json.dumps(content))
            _forget_oldest(self.file.parent)

    def _choosing(self, choice: Choice) -> Choosing:
        values = tuple(self.choices[print_choice(choice)])
        return Choosing(choice.id, choice.cluster, choice.tag, values)

    def _likelihood(self, example: Example) -> Likelihood:
        nats, num_tokens, hits = self.texts[print_text(example)]
        return Likelihood(example.id, nats, int(num_tokens), int(hits))

    def _read(self) -> tuple[Values, Values]:
        try:
            if self.file.stat().st_size > MAX_BYTES:
                raise ValueError("too large")
            content: Any = json.loads(self.file.read_bytes())
            return _checked(content, self.key)
        except FileNotFoundError:
            return {}, {}
        except (OSError, ValueError, ArithmeticError, RecursionError) as error:
            self.watcher.say(f"{self.file} is not what was left there ({error}): asking again")
            return {}, {}


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


def _key(loaded: Loaded) -> dict[str, Any]:
    """Everything that the numbers depend on, beside the questions."""
    return {
        "format": FORMAT,
        "base": digest_folder(loaded.source.folder),
        "dtype": str(loaded.model.dtype),
        "device": loaded.model.device.type,
        "read": path_of(loaded.model).name,
        "code": code_digest(),
        "libraries": [torch.__version__, transformers.__version__],
    }


def _checked(content: Any, key: dict[str, Any]) -> tuple[Values, Values]:
    """The values of a file of ours. Raises ValueError for anything else."""
    if not isinstance(content, dict):
        raise ValueError("no object")
    named = cast(dict[str, Any], content)
    if set(named) != {"key", "choices", "texts"} or named["key"] != key:
        raise ValueError("another base's")
    choices, texts = _numbers(named["choices"]), _numbers(named["texts"])
    if any(not row or max(row) > 0 for row in choices.values()):
        raise ValueError("a probability above one")
    for row in texts.values():
        if len(row) != 3 or not 0 <= row[2] <= row[1] or row[0] < 0 or row[1] < 1:
            raise ValueError("a likelihood that cannot be")
    return choices, texts


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
