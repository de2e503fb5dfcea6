"""A guard over every test: none of our code unpickles, calls torch.load or trusts remote code.

Direct calls of ours are caught for pickle, which libraries use among themselves; for torch.load and
`trust_remote_code=True` it is enough that our code is anywhere above the call.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer
from transformers.models.auto import auto_factory


class UntrustedError(BaseException):
    """Not an Exception: no handler of ours may swallow it."""


def is_ours(frame: FrameType | None) -> bool:
    name = str(frame.f_globals.get("__name__", "")) if frame else ""
    return name == "timechat" or name.startswith("timechat.")


def is_under_ours(frame: FrameType | None) -> bool:
    while frame is not None:
        if is_ours(frame):
            return True
        frame = frame.f_back
    return False


def refuse(name: str, real: Callable[..., Any], judge: Callable[[FrameType | None], bool]) -> Any:
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if judge(sys._getframe(1)):
            raise UntrustedError(f"timechat called {name}")
        return real(*args, **kwargs)

    return guarded


def refuse_remote(real: Any) -> Any:
    def guarded(cls: type, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("trust_remote_code") and is_under_ours(sys._getframe(1)):
            raise UntrustedError("timechat said trust_remote_code=True")
        return real.__func__(cls, *args, **kwargs)

    return classmethod(guarded)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_unpickled() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("load", "loads"):
            patch.setattr(pickle, name, refuse(f"pickle.{name}", getattr(pickle, name), is_ours))
        patch.setattr(torch, "load", refuse("torch.load", torch.load, is_under_ours))
        for face in (auto_factory._BaseAutoModelClass, AutoTokenizer, AutoConfig):
            patch.setattr(face, "from_pretrained", refuse_remote(face.__dict__["from_pretrained"]))
        yield
