"""A process with everything imported, which forks a child for each tiny run it is asked for.

    python zygote.py     one JSON request a line on standard input; answers {"pid"} when the child
                         begins and {"status"} at its end

A request has `out`, `recipe`, `arm` (what shim.c is told) and `only_learn`, and may have:

    allow      what may have changed
    prepare    only prepare the recipe's rows
    parent     the process that the child ends with
    poison     the first step whose loss is not a number, and how many times
    clock      the seconds that the clock is set back, and after how many looks at it
    user       the number of another user who runs it, and a recipe to warm up with before

Importing takes seconds and a tiny run a fraction of one, so that hundreds of kills are affordable.
The fork is safe because nothing here has computed anything yet, and one thread computes.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from timechat.cli import signals
from timechat.conversation import Conversation, Message
from timechat.data.cleaning.language import language_of
from timechat.errors import StoppedError, TimeChatError
from timechat.evals.questions import suite
from timechat.parent import PARENT
from timechat.recipe_file import load_recipe
from timechat.stages.preparing.prepare import prepare
from timechat.stages.training import plan as plan_stage
from timechat.stages.training import train as train_stage
from timechat.stages.training.tune import tune
from timechat.stages.watch import Watcher
from timechat.training.trainer import Trainer


class Telling(Watcher):
    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def only_learn(room: Any) -> Any:
    """The run without its evaluations, for tests that ask about training alone."""
    tune(room)
    (room.out / "learnt").write_text("yes")


def thin(rows: list[Any]) -> list[Any]:
    """A few of the general suite's rows, for every use of them."""
    uses: dict[str, list[Any]] = {}
    for row in rows:
        uses.setdefault(row.get("split", ""), []).append(row)
    return [row for part in uses.values() for row in part[:: max(1, len(part) // 4)]]


def poison(first: int, times: int) -> None:
    """Let the loss of training be no number, from a step on, so many times.

    The checks before training take steps too, and nobody asks them to stop: they are left alone.
    """
    real = Trainer.backward
    left = [times]

    def backward(self: Trainer, *arguments: Any, **named: Any) -> tuple[float, float | None]:
        loss, held = real(self, *arguments, **named)
        is_training = getattr(arguments[-1], "__name__", "") == "is_asked"
        if is_training and self.step + 1 >= first and left[0] > 0:
            left[0] -= 1
            return float("nan"), held
        return loss, held

    Trainer.backward = backward


def become(user: int) -> None:
    """Another user from here on, with nothing of this one's."""
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    os.environ["HOME"] = "/nonexistent"
    os.environ.pop("TIMECHAT_CACHE", None)


def work(ask: dict[str, Any]) -> int:
    log = os.open(f"{ask['out']}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    plan_stage.machine.matrix_rate = lambda dtype: 1e11
    whole = suite._rows
    suite._rows = lambda name: thin(whole(name))
    if ask["only_learn"]:
        train_stage._run = only_learn
    if ask.get("poison"):
        poison(*ask["poison"])
    library = ctypes.CDLL(None)
    if ask.get("arm"):
        folder, how, at, error = ask["arm"]
        library.fault_arm(folder.encode(), how, ctypes.c_long(at), error)
    if ask.get("clock"):
        library.fault_clock(*map(ctypes.c_long, ask["clock"]))
    if ask.get("user"):
        user, recipe = ask["user"]
        # What is imported late is imported now: this Python may lie where that user may not look.
        train_stage.train(load_recipe(Path(recipe)), Path(f"{ask['out']}.warm"))
        become(user)
    if ask.get("parent"):
        os.environ[PARENT] = str(ask["parent"])
    signals.install()
    out, allow = Path(ask["out"]), ask.get("allow", ())
    try:
        recipe = load_recipe(Path(ask["recipe"]))
        if ask.get("prepare"):
            prepare(recipe.data, out, Telling().say)
        else:
            train_stage.train(recipe, out, Telling(), signals.STOP, allow)
    except StoppedError as stopped:
        return stopped.exit_status
    except (TimeChatError, OSError, RuntimeError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 2
    if ask.get("arm"):
        Path(f"{ask['out']}.calls").write_text(str(library.fault_calls()))
    return 0


def main() -> None:
    # What tells languages apart is unpacked once, not in every child: half of a tiny run's time.
    language_of(Conversation("", (Message("user", "Which language is this sentence written in?"),)))
    for line in sys.stdin:
        ask = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                status = work(ask)
            except BaseException:
                traceback.print_exc()
                status = 70
            os._exit(status)
        print(json.dumps({"pid": child}), flush=True)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        print(json.dumps({"status": code}), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main()
