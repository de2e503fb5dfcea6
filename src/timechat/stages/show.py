"""`show`: rows as the model will see them, token by token, with what is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from timechat.model.load import load_tokenizer, resolve
from timechat.model.render import Renderer
from timechat.stages.prepare import load_prepared, rows_of_run


@dataclass(frozen=True, slots=True)
class Shown:
    """One row: where it came from, and its tokens as (text, weight)."""

    id: str
    source: str
    line: int
    tokens: list[tuple[str, float]]


def show(folder: Path, rows: int, base: str) -> list[Shown]:
    """The first `rows` training rows of a prepared folder, or of a run."""
    if (folder / "recipe.yaml").is_file():
        folder = rows_of_run(folder)
    prepared = load_prepared(folder)
    renderer = Renderer(load_tokenizer(resolve(base).folder))
    shown: list[Shown] = []
    for row in prepared.first(rows):
        rendered = renderer.example(row.messages)
        texts = [str(renderer.tokenizer.decode([token])) for token in rendered.ids]
        tokens = list(zip(texts, rendered.weights, strict=True))
        shown.append(Shown(row.id, row.source, row.line, tokens))
    return shown
