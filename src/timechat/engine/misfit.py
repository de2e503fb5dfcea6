"""Why a JSON schema cannot hold an answer, seen by looking at it before anything compiles it.

A schema with a word that the engine's compiler reads over would promise what no answer is held to,
so it is refused by name; so is one whose references lead out of it, or nowhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

# What the runtime's compiler reads over without a word.
UNHELD = frozenset(
    {
        "contains", "dependencies", "dependentRequired", "dependentSchemas", "else", "if",
        "multipleOf", "not", "then", "uniqueItems", "$dynamicRef", "$recursiveRef",
    }
)  # fmt: skip
# Where schemas stand inside a schema: by name, in a row, or alone.
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_ROWS = ("anyOf", "oneOf", "allOf", "prefixItems")
_ALONE = ("items", "additionalProperties", "additionalItems", "propertyNames",
          "unevaluatedItems", "unevaluatedProperties")  # fmt: skip
_NOWHERE = object()


def misfit(text: str) -> str:
    """Why this is no schema to hold answers to, seen by looking at it; else empty."""
    import jsonschema

    schema = json.loads(text)
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        return f"not a JSON schema: {error.message} (at {error.json_path})"[:400]
    return refusal_of(schema)


def refusal_of(schema: object) -> str:
    """What in a schema no answer would be held to, or would be looked for elsewhere; else empty."""
    for place, one in _schemas(schema):
        if not isinstance(one, dict):
            continue
        rows = cast(dict[str, Any], one)
        if unheld := sorted(UNHELD & rows.keys()):
            return f"answers are not held to {unheld[0]!r} (at {place})"
        if len(rows.get("allOf") or ()) > 1:
            return f"answers are not held to several parts of 'allOf' (at {place})"
        ref = rows.get("$ref", "#")
        if not (isinstance(ref, str) and _resolves(ref, schema)):
            return f"{str(ref)[:80]!r} is not a part of this schema (at {place})"
        if "$ref" in rows and _leads_nowhere(ref, schema):
            return f"{ref[:80]!r} leads back to itself, and no answer fits it (at {place})"
    return ""


def _schemas(schema: object) -> Iterator[tuple[str, object]]:
    """Every schema in a schema, with where it stands."""
    waiting: list[tuple[str, object]] = [("#", schema)]
    while waiting:
        place, one = waiting.pop()
        yield place, one
        if not isinstance(one, dict):
            continue
        rows = cast(dict[str, Any], one)
        for word in _NAMED:
            if isinstance(inner := rows.get(word), dict):
                named = cast(dict[str, object], inner)
                waiting += [(f"{place}/{word}/{name[:40]}", each) for name, each in named.items()]
        for word in _ROWS:
            if isinstance(inner := rows.get(word), list):
                listed = cast(list[object], inner)
                waiting += [(f"{place}/{word}/{at}", each) for at, each in enumerate(listed)]
        waiting += [(f"{place}/{word}", rows[word]) for word in _ALONE if word in rows]


def _resolves(ref: str, schema: object) -> bool:
    """Whether a reference is a path into the schema itself."""
    return _at(ref, schema) is not _NOWHERE


def _leads_nowhere(ref: str, schema: object) -> bool:
    """Whether a reference comes back to itself with nothing but references on the way."""
    seen: set[str] = set()
    at: object = {"$ref": ref}
    while isinstance(at, dict):
        upcoming = cast(dict[str, object], at).get("$ref")
        if not isinstance(upcoming, str):
            return False
        if upcoming in seen:
            return True
        seen.add(upcoming)
        at = _at(upcoming, schema)
    return False


def _at(ref: str, schema: object) -> object:
    """What a reference names in the schema itself, else `_NOWHERE`."""
    if not (ref == "#" or ref.startswith("#/")):
        return _NOWHERE
    at: Any = schema
    for part in ref[1:].split("/")[1:]:
        word = part.replace("~1", "/").replace("~0", "~")
        if isinstance(at, dict) and word in at:
            at = cast(dict[str, Any], at)[word]
        elif isinstance(at, list) and word.isdecimal() and int(word) < len(cast(list[Any], at)):
            at = cast(list[Any], at)[int(word)]
        else:
            return _NOWHERE
    return at
