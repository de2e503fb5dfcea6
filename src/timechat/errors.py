"""Every error a user can meet, as one tree.

    TimeChatError              anything this project raises on purpose
    ├── UserError              the user can mend it: exit status 2, one message, no traceback
    │   ├── RecipeError        the recipe or an option
    │   ├── DataError          a file of rows
    │   ├── ModelError         a model folder, name or tokenizer
    │   ├── PlanError          the run would not fit this machine
    │   ├── RunError           a run directory
    │   ├── LedgerError        the ledger's database, or a request that its rows do not allow
    │   ├── CheckpointError    a checkpoint that is missing, damaged or of another run
    │   ├── ExportError        a model that cannot be written in a format, or did not pass its gate
    │   └── FetchError         nothing reachable, or what came is not what was pinned
    └── TrainingError          training cannot go on (a loss that is not finite)

A message says what happened, the value, what is allowed, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TimeChatError(Exception):
    """The root of the tree."""

    exit_status = 1


class UserError(TimeChatError):
    """Something the user can mend."""

    exit_status = 2


class RecipeError(UserError):
    """The recipe, or an option on the command line, is wrong."""


class DataError(UserError):
    """A data file is missing, empty, unreadable, or loses too many rows."""


class ModelError(UserError):
    """A model cannot be found or loaded."""


class PlanError(UserError):
    """The run would not fit this machine."""


class RunError(UserError):
    """A run directory is missing, in use, or not what the command needs."""


class LedgerError(UserError):
    """The ledger cannot be opened, or what is asked of it is not allowed by what it holds."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or belongs to another run."""


class ExportError(UserError):
    """A model cannot be written in that format, or what was written did not answer the same."""


class FetchError(UserError):
    """A download failed or its hash is not the pinned one."""


class TrainingError(TimeChatError):
    """Training cannot go on."""


class StoppedError(TimeChatError):
    """Stopped by a signal, which is no failure: the exit status is 128 and its number."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum
        self.exit_status = 128 + signum


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause naming the nearest known names to `name`, or all of them when none is near."""
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + ", ".join(options)
