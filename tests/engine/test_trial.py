"""Schemas that attack: each costs a refusal within a bound, and nobody but its sender."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import openvino as ov
import pytest
from conftest import build_tokenizer, longest_hold
from openvino_tokenizers import convert_tokenizer

from timechat.engine.admission import BusyError
from timechat.engine.families import compiled_folder
from timechat.engine.misfit import refusal_of
from timechat.engine.protocol import SchemaError
from timechat.engine.trial import ANY_OBJECT, SchemaTrial, _narrow

PERSON = {
    "$defs": {"city": {"enum": ["Dublin", "Dubai"]}},
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0},
        "city": {"$ref": "#/$defs/city"},
        "not": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
    },
    "required": ["name", "not"],
    "additionalProperties": False,
}
NEVER = {"type": "string", "pattern": "^((a{1,1000}){1,1000}){1,1000}$"}
# For a loaded machine: what is quick must not be refused because others compute.
EASY = {"compile_s": 20.0, "hang_s": 120.0}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A compiled model of one layer with a small vocabulary, where the cache would have it."""
    cache = tmp_path_factory.mktemp("cache")
    folder = compiled_folder("d" * 24, 8, cache)
    folder.mkdir(parents=True)
    tokenizer = build_tokenizer()
    ov.save_model(_narrow(len(tokenizer)), folder / "openvino_model.xml")
    words, back = convert_tokenizer(tokenizer, with_detokenizer=True)
    ov.save_model(words, folder / "openvino_tokenizer.xml")
    ov.save_model(back, folder / "openvino_detokenizer.xml")
    return {"digest": "d" * 24, "bits": 8, "cache": str(cache), "name": "tiny"}


def play(probe: SchemaTrial, scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        try:
            await scene()
        finally:
            await probe.stop()

    asyncio.run(whole())


def test_good_schemas_pass_and_wrong_ones_are_named_without_ending_the_child(
    spec: dict[str, Any],
) -> None:
    probe = SchemaTrial(spec, **EASY)

    async def scene() -> None:
        await probe.check(ANY_OBJECT)
        assert not probe._child.is_open, "the plainest schema needs no trial"
        await probe.check(json.dumps(PERSON))
        child = probe._child._process
        for schema, said in (
            ({"type": "wizard"}, "not a JSON schema: 'wizard' is not valid"),
            ({"$ref": "http://evil.example/s.json"}, "is not a part of this schema"),
            ({"type": "array", "uniqueItems": True}, "answers are not held to 'uniqueItems'"),
            ({"type": "string", "pattern": "(("}, "is not a 'regex'"),
        ):
            with pytest.raises(SchemaError, match=said):
                await probe.check(json.dumps(schema))
        await probe.check(json.dumps(PERSON))
        assert probe._child._process is child

    play(probe, scene)


def test_what_the_runtime_alone_cannot_read_is_refused_and_the_next_schema_tried(
    spec: dict[str, Any],
) -> None:
    probe = SchemaTrial(spec, **EASY)

    async def scene() -> None:
        with pytest.raises(SchemaError, match=r"cannot be compiled: .*[Ll]ookahead"):
            await probe.check('{"type":"string","pattern":"^(?=a)a$"}')
        await probe.check('{"type":"integer"}')

    play(probe, scene)


def test_a_schema_that_would_compile_for_ever_is_refused_in_time_and_the_loop_goes_on(
    spec: dict[str, Any],
) -> None:
    probe = SchemaTrial(spec, **EASY)

    async def scene() -> None:
        await probe.check('{"type":"null"}')  # the child is there
        probe.hang_s = 1.0
        held = asyncio.create_task(longest_hold())
        await asyncio.sleep(0)
        begun = time.monotonic()
        with pytest.raises(SchemaError, match="longer than 20 s to compile"):
            await probe.check(json.dumps(NEVER))
        assert time.monotonic() - begun < 10.0
        held.cancel()
        assert await held < 0.05, "the event loop computed meanwhile"
        # Asked again it is refused from memory, and others are tried.
        with pytest.raises(SchemaError):
            await probe.check(json.dumps(NEVER))
        assert not probe._child.is_open
        probe.hang_s = 120.0
        await probe.check('{"type":"boolean"}')

    play(probe, scene)


def test_a_schema_that_costs_too_much_is_refused_even_where_it_ends(spec: dict[str, Any]) -> None:
    probe = SchemaTrial(spec, compile_s=0.0, hang_s=120.0)

    async def scene() -> None:
        with pytest.raises(SchemaError, match="longer than 0 s to compile"):
            await probe.check(json.dumps(PERSON))

    play(probe, scene)


def test_who_waits_too_long_for_others_schemas_is_told_to_come_again(
    spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timechat.engine.trial.QUEUE_S", 0.02)
    probe = SchemaTrial(spec)

    async def scene() -> None:
        async with probe._child.turn:
            with pytest.raises(BusyError):
                await probe.check('{"type":"null"}')
        await probe.stop()

    play(probe, scene)


def test_a_compiler_that_does_not_start_is_an_error_and_not_a_refusal(tmp_path: Path) -> None:
    nowhere = {"digest": "e" * 24, "bits": 8, "cache": str(tmp_path), "name": "tiny"}
    probe = SchemaTrial(nowhere)

    async def scene() -> None:
        with pytest.raises(Exception, match="its compiler did not start"):
            await probe.check('{"type":"null"}')

    play(probe, scene)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (PERSON, ""),
        ({"type": "object", "properties": {"more": {"$ref": "#"}}}, ""),
        ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {}}}, ""),
        ({"allOf": [{"$ref": "#/anyOf/0"}], "anyOf": [{"type": "null"}]}, ""),
        ({"$ref": "#/$defs/gone"}, "is not a part of this schema"),
        ({"$ref": "#anchor"}, "is not a part of this schema"),
        ({"$ref": "file:///etc/passwd"}, "is not a part of this schema"),
        ({"items": {"anyOf": [{}, {"not": {}}]}}, "'not' (at #/items/anyOf/1)"),
        ({"properties": {"a": {"allOf": [{}, {}]}}}, "several parts of 'allOf'"),
        ({"additionalProperties": {"multipleOf": 3}}, "'multipleOf'"),
        (True, ""),
        ({"$ref": "#"}, "leads back to itself"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "leads back to"),
    ],
)
def test_what_answers_would_not_be_held_to_is_named(schema: Any, said: str) -> None:
    found = refusal_of(schema)
    assert said in found
    assert bool(said) == bool(found)


def test_a_schema_nested_as_deep_as_the_parser_allows_does_not_end_the_walk() -> None:
    deep: Any = {"type": "string"}
    for _ in range(sys.getrecursionlimit() * 3):
        deep = {"items": deep}
    assert refusal_of(deep) == ""
