"""Answers that obey a JSON schema: which tokens may come next, by llguidance.

It works the mask out while the answer is written, under limits of its own (grammar size, states,
work per token), so that no schema can take more than that. Choosing is `choose`'s.
"""

from __future__ import annotations

import asyncio
import importlib.util
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from timechat.engine.protocol import SchemaError

# Between two parts of JSON, at most: weights that like spaces would say nothing else for ever.
_SPACES = r"[ \n]{0,16}"


class Vocabulary:
    """The spelling of every token of a model's `tokenizer`, made once."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, num_rows: int) -> None:
        from llguidance.hf import from_tokenizer

        self.spelling = from_tokenizer(tokenizer, n_vocab=num_rows)
        self.num_rows = num_rows


def find_vocabulary(tokenizer: PreTrainedTokenizerBase, num_rows: int) -> Vocabulary | None:
    """None where schemas cannot be held: llguidance is not installed, or there is no
    tokenizer.json."""
    if importlib.util.find_spec("llguidance") is None:
        return None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    return Vocabulary(tokenizer, num_rows)


class Guide:
    """One answer's way through its schema.

    Raises SchemaError where it cannot be held, which may show only on the way: llguidance counts
    its work a token at a time.
    """

    def __init__(self, vocabulary: Vocabulary, schema: str, stop: frozenset[int]) -> None:
        from llguidance import LLMatcher

        matcher = cast(Any, LLMatcher)
        self._matcher = matcher(vocabulary.spelling, _grammar(schema), log_level=0)
        self._check()
        self._num_rows = vocabulary.num_rows
        self._stop = torch.tensor(sorted(stop), dtype=torch.long)

    @property
    def is_over(self) -> bool:
        """Whether nothing may follow but a stop token."""
        return bool(self._matcher.is_stopped())

    def held(self, logits: Tensor) -> Tensor:
        """The logits with whatever must not come now at minus infinity."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        mask = np.unpackbits(bits, bitorder="little")[: self._num_rows].astype(bool)
        may = torch.from_numpy(mask)
        # A stop token of the request's own ends it, where an end is allowed; none other does.
        may[self._stop] = bool(self._matcher.is_accepting())
        return logits.masked_fill(~may, -torch.inf)

    def take(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            first, *_ = str(self._matcher.get_error()).splitlines()
            raise SchemaError(f"the schema cannot be held: {first}")


class GrammarTrial:
    """Says no to a schema before the engine sees it: compiling is bounded, and needs no weights."""

    async def check(self, schema: str) -> None:
        """Raises SchemaError."""
        if refused := await asyncio.to_thread(_refusal, schema):
            raise SchemaError(f"the schema cannot be held: {refused}")

    async def stop(self) -> None:
        """Nothing runs."""


def _refusal(schema: str) -> str:
    from llguidance import LLMatcher

    try:
        message = str(cast(Any, LLMatcher).validate_grammar(_grammar(schema)))
    except ValueError as error:
        message = str(error)
    return message.partition("\n")[0]


def _grammar(schema: str) -> str:
    from llguidance import LLMatcher

    options = {"whitespace_pattern": _SPACES}
    return cast(Any, LLMatcher).grammar_from_json_schema(schema, defaults=options)
