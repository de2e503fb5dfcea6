"""Go's text/template, as much of it as a Modelfile of ours uses; anything else is an error.

By the package's documentation (https://pkg.go.dev/text/template): `{{-` takes away the white space
before it and `-}}` after it, `range` and `if` open blocks that `end` closes, `eq` compares, a
quoted string prints itself. Where Go itself is installed the tests hold this against it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

# A tag may hold strings, and strings may hold the closing braces.
_TAG = re.compile(
    r'\{\{(?P<left>- )?(?P<body>(?:"(?:\\.|[^"\\])*"|[^"}]|\}(?!\}))*?)(?P<right> -)?\}\}'
)
_ESCAPES = {
    "n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\\": "\\", '"': '"',
}  # fmt: skip
_CONDITION = re.compile(r'eq \.(\w+) ("(?:\\.|[^"\\])*")')


def render(template: str, data: Mapping[str, Any]) -> str:
    """The template's text for `data`. Raises ValueError for a construct that is not known here."""
    tokens = list(_tokens(template))
    text, at = _block(tokens, 0, data, True)
    if at != len(tokens):
        raise ValueError(f"{tokens[at]} closes nothing")
    return text


def _tokens(template: str) -> Iterator[tuple[str, str]]:
    at, trim = 0, False
    for tag in _TAG.finditer(template):
        yield "text", _trimmed(template[at : tag.start()], trim, bool(tag["left"]))
        yield "tag", tag["body"].strip()
        at, trim = tag.end(), bool(tag["right"])
    rest = template[at:]
    if "{{" in rest:
        raise ValueError(f"an action that does not end: {rest!r}")
    yield "text", _trimmed(rest, trim, False)


def _trimmed(text: str, before: bool, after: bool) -> str:
    space = " \t\r\n"
    text = text.lstrip(space) if before else text
    return text.rstrip(space) if after else text


def _block(
    tokens: list[tuple[str, str]], at: int, dot: Mapping[str, Any], on: bool
) -> tuple[str, int]:
    """What stands up to the `else` or `end` that belongs to somebody further out."""
    out: list[str] = []
    while at < len(tokens):
        kind, body = tokens[at]
        if kind == "tag" and (body == "end" or body.startswith("else")):
            return "".join(out), at
        at += 1
        if kind == "text":
            out.append(body)
        elif body.startswith("range "):
            name = body.removeprefix("range .")
            rows = dot[name] if on else [{}]
            end = at
            for row in rows or [{}]:
                text, end = _block(tokens, at, row, on and bool(rows))
                out.append(text if rows and on else "")
            at = _closed(tokens, end)
        elif body.startswith("if "):
            text, at = _branches(tokens, at, body.removeprefix("if "), dot, on)
            out.append(text)
        else:
            out.append(_value(body, dot) if on else "")
    return "".join(out) if on else "", at


def _branches(
    tokens: list[tuple[str, str]], at: int, condition: str, dot: Mapping[str, Any], on: bool
) -> tuple[str, int]:
    chosen, done = "", False
    while True:
        holds = on and not done and _holds(condition, dot)
        text, at = _block(tokens, at, dot, holds)
        chosen, done = (text, True) if holds else (chosen, done)
        body = tokens[at][1]
        if body == "end":
            return chosen, at + 1
        condition, at = body.removeprefix("else").strip().removeprefix("if "), at + 1


def _holds(condition: str, dot: Mapping[str, Any]) -> bool:
    if not condition:
        return True
    found = _CONDITION.fullmatch(condition)
    if found is None:
        raise ValueError(f"condition {condition!r}")
    return bool(dot[found[1]] == _string(found[2]))


def _value(body: str, dot: Mapping[str, Any]) -> str:
    if body.startswith('"'):
        return _string(body)
    if re.fullmatch(r"\.\w+", body):
        return str(dot[body[1:]])
    raise ValueError(f"action {body!r}")


def _string(quoted: str) -> str:
    def one(found: re.Match[str]) -> str:
        if found[1]:
            return chr(int(found[1], 16))
        if found[2] not in _ESCAPES:
            raise ValueError(f"Go has no escape \\{found[2]}")
        return _ESCAPES[found[2]]

    if "\n" in quoted:
        raise ValueError("a string of Go ends with its line")
    return re.sub(r"\\(?:u([0-9a-fA-F]{4})|(.))", one, quoted[1:-1])


def _closed(tokens: list[tuple[str, str]], at: int) -> int:
    if tokens[at][1] != "end":
        raise ValueError(f"{tokens[at][1]!r} where an end belongs")
    return at + 1
