"""Whole folders: built beside their place, replaced, deleted, and swept after a kill.

Nothing half-written looks finished, and nothing half-deleted does.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from timechat.store.claims import MARK, claim_beside, hold, name_beside
from timechat.store.files import sync_file, sync_folder

OS_ERROR = re.compile(r"\(os error (\d+)\)")
# Of what is being replaced and has lost its name for a moment.
OLD = "old-"


class Draft:
    """A folder that is filled beside `target` and appears there whole, or not at all."""

    def __init__(self, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent)
        self.target = target
        self.folder, self._handle = claim_beside(target, is_folder=True)

    def commit(self) -> None:
        """Make it durable, then give it its name; what had the name before is replaced."""
        _share(self.folder)
        sync_tree(self.folder)
        if self.target.exists():
            _replace(self.target, self.folder)
        else:
            os.rename(self.folder, self.target)
        sync_folder(self.target.parent)
        self._release()

    def drop(self) -> None:
        """Take back what was written."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._release()

    def _release(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1


@contextmanager
def build_folder(target: Path) -> Generator[Path]:
    """A folder that appears at `target` only when the block ends well.

    Yields a sibling to fill; renames it at the end, and removes it when the block raises.
    """
    draft = Draft(target)
    try:
        with system_errors(target):
            yield draft.folder
        draft.commit()
    except BaseException:
        draft.drop()
        raise


@contextmanager
def system_errors(place: Path) -> Generator[None]:
    """Make the OSError of it again that a library written in Rust tells as an error of its own."""
    try:
        yield
    except Exception as error:
        found = None if isinstance(error, OSError) else OS_ERROR.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(place)) from error


def remove_folder(folder: Path) -> None:
    """Delete a folder so that a kill on the way leaves no part of it under its name."""
    shutil.rmtree(_hide(folder))


def sweep(folder: Path) -> None:
    """Delete what killed processes left half-written or half-deleted directly in `folder`, and
    give its name back to what one was about to replace."""
    for path in sorted(folder.glob(f".*{MARK}*")):
        handle = hold(path)
        if handle is None:
            continue  # its writer is at work
        name, _, suffix = path.name[1:].rpartition(MARK)
        try:
            if suffix.startswith(OLD) and not (folder / name).exists():
                os.rename(path, folder / name)
            elif path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        finally:
            os.close(handle)


def sweep_run(run: Path) -> None:
    """`sweep` every folder of a run."""
    for place, _, _ in os.walk(run):
        sweep(Path(place))


def sync_tree(folder: Path) -> None:
    """Make everything below `folder` durable, the entries after what they name."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            if not os.path.islink(os.path.join(place, name)):
                sync_file(Path(place, name))
        sync_folder(Path(place))


def size_of(folder: Path) -> int:
    """Bytes of all files below `folder`; links count for nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            found = os.lstat(os.path.join(place, name))
            total += 0 if os.path.islink(os.path.join(place, name)) else found.st_size
    return total


def _replace(target: Path, fresh: Path) -> None:
    """Give `fresh` the name of `target`, which goes.

    That takes two renames. A kill between them leaves no name on half a folder, and `sweep` gives
    the old one its name back; it is held meanwhile, so that nobody's sweep does so now.
    """
    handle = hold(target)
    old = _hide(target, OLD)
    try:
        os.rename(fresh, target)
    except BaseException:
        os.rename(old, target)
        raise
    finally:
        if handle is not None:
            os.close(handle)
    gone = name_beside(target)
    os.rename(old, gone)
    shutil.rmtree(gone, ignore_errors=True)


def _hide(folder: Path, mark: str = "") -> Path:
    """Rename `folder` to a name under which it counts as gone."""
    hidden = name_beside(folder, mark)
    os.rename(folder, hidden)
    return hidden


def _share(folder: Path) -> None:
    """Give every file the user's own umask: safetensors writes files that only he can read."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)
