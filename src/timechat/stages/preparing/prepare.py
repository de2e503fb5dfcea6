"""`prepare`: files of rows to a folder of clean, split conversations with a card.

The order of things. Rows are read by `intake`, sorted by `sorting` and written by
`output`; how a file is read, a row judged and a split drawn is `data`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from timechat.conversation import Conversation
from timechat.data.cleaning.steps import Count
from timechat.data.describe import describe
from timechat.data.files.locate import PREPARED_CARD
from timechat.data.sources import Source, open_sources
from timechat.errors import DataError, RunError
from timechat.recipe import Data
from timechat.records import DataCard
from timechat.stages.preparing.intake import Intake, Pool, Say
from timechat.stages.preparing.output import SPLITS, digest, make_card, write_rows
from timechat.stages.preparing.sorting import sort_rows
from timechat.store.files import read_json, read_lines, write_json
from timechat.store.folders import build_folder

FILES = frozenset({PREPARED_CARD, "dropped.jsonl", *(f"{name}.jsonl" for name in SPLITS)})


@dataclass(frozen=True)
class Prepared:
    """A prepared folder and its card; the rows are read when they are asked for."""

    folder: Path
    card: DataCard

    @cached_property
    def train(self) -> tuple[Conversation, ...]:
        return self._rows("train")

    @cached_property
    def validation(self) -> tuple[Conversation, ...]:
        return self._rows("validation")

    @cached_property
    def test(self) -> tuple[Conversation, ...]:
        return self._rows("test")

    def first(self, count: int) -> list[Conversation]:
        """The first training rows, without reading the others."""
        return [row for row, _ in zip(self._read("train"), range(count), strict=False)]

    def _rows(self, name: str) -> tuple[Conversation, ...]:
        return tuple(self._read(name))

    def _read(self, name: str) -> Iterator[Conversation]:
        try:
            for row in read_lines(self.folder / f"{name}.jsonl"):
                yield Conversation.from_dict(row)
        except (OSError, KeyError, TypeError, ValueError, RunError) as error:
            raise DataError(f"{self.folder} is damaged, prepare it again: {error}") from None


def prepare(data: Data, out: Path, say: Say, count: Count | None = None) -> Prepared:
    """Read, clean and split the rows of `data` and leave them in `out`.

    `count` tells the tokens of a conversation, where `data.clean.max_tokens` wants them counted.
    Raises DataError before anything is written; `out` is there in full or not at all.
    """
    if data.prepared is not None:
        if data.train or data.validation or data.test:
            raise DataError(
                "data.prepared stands instead of data.train, data.validation and data.test: "
                "give one or the other"
            )
        return load_prepared(Path(data.prepared))
    if not data.train:
        raise DataError("no training rows: give data.train at least one file")
    _check_out(out)
    sources = open_files(data)
    with build_folder(out) as folder:
        intake = Intake(data, folder, count, say)
        pools = {name: Pool(folder / f"{name}.rows") for name in SPLITS}
        try:
            card = _prepare(data, folder, sources, pools, intake)
        finally:
            intake.close()
            for name, pool in pools.items():
                pool.close()
                (folder / f"{name}.rows").unlink(missing_ok=True)
        write_json(folder / PREPARED_CARD, card)
    return Prepared(out, card)


def _prepare(
    data: Data,
    folder: Path,
    sources: dict[str, list[Source]],
    pools: dict[str, Pool],
    intake: Intake,
) -> DataCard:
    for name in SPLITS:
        intake.read(sources[name], name, pools[name])
    intake.check_dropped()
    for name in SPLITS:
        if sources[name] and not len(pools[name]):
            names = ", ".join(source.name for source in sources[name])
            raise DataError(f"no usable {name} row in {names}: " + intake.top_reasons())
    given = {name for name in SPLITS if sources[name]}
    found = sort_rows(pools, given, intake, folder)
    intake.check_dropped()
    intake.say_found()
    counts = write_rows(folder, pools, found)
    intake.close()
    return make_card(data, folder, pools, intake, found, counts)


def recognised(data: Data, say: Say) -> dict[str, dict[str, Any]]:
    """What each file of `data` was recognised as, said with its first rows; nothing is written."""
    found: dict[str, dict[str, Any]] = {}
    for name, sources in open_files(data).items():
        for source in sources:
            for line in describe(source):
                say(line)
            found[source.name] = {"split": name} | source.notes
    return found


def load_prepared(folder: Path) -> Prepared:
    """Read a folder that `prepare` left. Raises DataError when it is none or was changed since."""
    if not (folder / PREPARED_CARD).is_file():
        raise DataError(
            f"{folder} is no prepared folder (no {PREPARED_CARD} in it): "
            "make one with `timechat prepare`"
        )
    try:
        card = DataCard(**read_json(folder / PREPARED_CARD))
        if digest(folder) != card.digest:
            raise DataError(
                f"the rows in {folder} are not those of its {PREPARED_CARD} (digest differs): "
                "prepare them again instead of editing them"
            )
    except (OSError, KeyError, TypeError, ValueError, RunError) as error:
        raise DataError(f"{folder} is damaged, prepare it again: {error}") from None
    return Prepared(folder, card)


def rows_of_run(run: Path) -> Path:
    """The prepared folder of a run: its own, or the one that it refers to."""
    reference = run / "data" / "prepared.json"
    return Path(read_json(reference)["path"]) if reference.is_file() else run / "data"


def _check_out(out: Path) -> None:
    """`out` is free, or holds what `prepare` writes and nothing else, which is replaced."""
    if not (out.exists() or out.is_symlink()):
        return
    if not (out / PREPARED_CARD).is_file():
        raise DataError(
            f"{out} exists and is not a prepared folder (no {PREPARED_CARD}): name a folder that "
            "does not exist yet"
        )
    strangers = sorted(p.name for p in out.iterdir() if p.name not in FILES)
    if strangers or out.is_symlink():
        why = f"also holds {', '.join(strangers[:5])}" if strangers else "is a link"
        raise DataError(f"{out} {why}, and would be replaced: name another folder")


def open_files(data: Data) -> dict[str, list[Source]]:
    """The files of each split. A folder of training rows that comes split stays as split, but
    files that the recipe names for a split go before those of such a folder."""
    given = {"validation": data.validation, "test": data.test}
    sources = {name: open_sources(names, data) for name, names in given.items()}
    sources["train"] = []
    for source in open_sources(data.train, data):
        if given.get(source.split or ""):
            raise DataError(
                f"{source.name} calls itself {source.split} rows, and data.{source.split} names "
                "others: name the training files one by one"
            )
        sources[source.split or "train"].append(source)
    return sources
