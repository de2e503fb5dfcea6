"""`show`: rows as the model will see them: what is a control token, and what is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, cast

from timechat.model.load import load_tokenizer, resolve
from timechat.model.render import Rendered, Renderer
from timechat.recipe_file import load_recipe
from timechat.stages.preparing.prepare import load_prepared, rows_of_run


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of tokens of one weight: one control token, or text."""

    text: str
    weight: float
    control: bool
    tokens: int


@dataclass(frozen=True, slots=True)
class Shown:
    """One row: where it came from, its pieces, and the answer that was preferred less."""

    id: str
    source: str
    line: int
    pieces: list[Piece]
    rejected: str


def show(folder: Path, rows: int, base: str) -> list[Shown]:
    """The first `rows` training rows of a prepared folder, or of a run.

    Rendered by `base`; where that is empty by the base of the run, or else by the starter.
    """
    if (folder / "recipe.yaml").is_file():
        base = base or load_recipe(folder / "recipe.yaml").base
        folder = rows_of_run(folder)
    prepared = load_prepared(folder)
    renderer = Renderer(load_tokenizer(resolve(base or "starter").folder))
    return [
        Shown(
            row.id,
            row.source,
            row.line,
            list(pieces(renderer, renderer.example(row.messages))),
            row.rejected,
        )
        for row in prepared.first(rows)
    ]


def pieces(renderer: Renderer, rendered: Rendered) -> Iterator[Piece]:
    """The tokens in stretches of one weight, each control token by itself.

    Told by the token's number and never by its letters, which a user may type.
    """
    controls = set(cast(Any, renderer.tokenizer).get_added_vocab().values())
    marks = [
        (token in controls and place + 1, weight)
        for place, (token, weight) in enumerate(zip(rendered.ids, rendered.weights, strict=True))
    ]
    end = 0
    before = ""
    for (control, weight), group in groupby(marks):
        begin, end = end, end + len(list(group))
        # Decoded behind all that stands before it: alone, some tokenizers lose its first space.
        whole = str(renderer.tokenizer.decode(rendered.ids[:end]))
        text = whole.removeprefix(before)
        if not whole.startswith(before):
            text = str(renderer.tokenizer.decode(rendered.ids[begin:end]))
        before = whole
        yield Piece(text, weight, bool(control), end - begin)
