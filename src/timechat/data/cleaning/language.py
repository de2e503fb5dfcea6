"""The language of a row, told offline by py3langid; too little text has none."""

from __future__ import annotations

import py3langid

from timechat.conversation import Conversation
from timechat.errors import DataError, nearest

# With fewer letters a guess says more about the letters than about the language.
MIN_LETTERS = 24
MAX_CHARACTERS = 2000
UNKNOWN = "?"


def language_of(row: Conversation) -> str:
    """The ISO 639-1 code of what the row says, or `UNKNOWN`."""
    text = " ".join(m.content for m in row.messages if m.role != "system")[:MAX_CHARACTERS]
    if sum(map(str.isalpha, text)) < MIN_LETTERS:
        return UNKNOWN
    return str(py3langid.classify(text)[0])


def check_languages(names: tuple[str, ...]) -> None:
    """Raise DataError for a language that no text could be told to be in."""
    if not names:
        return
    known = [str(name) for name, _ in py3langid.rank("a")]
    for name in names:
        if name not in known:
            raise DataError(
                f"data.clean.languages: {name!r} is no language code that is told apart "
                f"({nearest(name, known)}); write for example en"
            )
