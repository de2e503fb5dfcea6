"""Schemas that llguidance cannot hold are refused by name before an engine sees them."""

from __future__ import annotations

import asyncio
import json
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from conftest import build_tokenizer

from timechat.engine.grammar import GrammarTrial, Guide, find_vocabulary
from timechat.engine.protocol import SchemaError

pytestmark = pytest.mark.skipif(
    find_spec("llguidance") is None, reason="llguidance is not installed"
)
OPEN = {"type": "object", "properties": {"open": {"type": "boolean"}},
        "required": ["open"], "additionalProperties": False}  # fmt: skip

# Nothing fits, and llguidance sees it only when it looks for the first token.
ENDLESS = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "strin"}, "strin"),
        ({"type": "string", "pattern": "(?=x)"}, "regex"),
        ({"$ref": "http://127.0.0.1:9/x"}, "127.0.0.1"),
    ],
)
def test_what_cannot_be_held_is_refused_by_name(schema: Any, why: str) -> None:
    with pytest.raises(SchemaError, match=why):
        asyncio.run(GrammarTrial().check(json.dumps(schema)))


def test_large_schemas_are_no_danger() -> None:
    many = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(500)}}
    for schema in (OPEN, many, {"type": "string", "maxLength": 1_000_000}):
        asyncio.run(GrammarTrial().check(json.dumps(schema)))


def test_a_schema_that_refers_to_itself_without_end_is_its_own_fault() -> None:
    tokenizer = build_tokenizer()
    vocabulary = find_vocabulary(tokenizer, len(tokenizer))
    assert vocabulary is not None

    def begin() -> None:
        guide = Guide(vocabulary, json.dumps(ENDLESS), frozenset())
        guide.held(torch.zeros(len(tokenizer)))

    with pytest.raises(SchemaError, match="cannot be held"):
        begin()


def test_random_weights_write_what_fits_and_then_stop() -> None:
    tokenizer = build_tokenizer()
    vocabulary = find_vocabulary(tokenizer, len(tokenizer))
    assert vocabulary is not None
    stop = int(tokenizer.eos_token_id)
    guide = Guide(vocabulary, json.dumps(OPEN), frozenset({stop}))
    torch.manual_seed(0)
    said: list[int] = []
    while not said or said[-1] != stop:
        token = int(guide.held(torch.randn(len(tokenizer))).argmax())
        said.append(token)
        if token != stop:
            guide.take(token)
        assert len(said) < 200
    assert isinstance(json.loads(tokenizer.decode(said[:-1]))["open"], bool)
