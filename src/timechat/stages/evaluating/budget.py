"""How many general questions a run can afford: all, or the same share of every group.

The six promises may cost 5 % of a run or a minute, whichever is more. Two thirds of that go to
what the model could do before; gradient, resume and export share the rest. The pace is measured on
the first questions of the fixed draw.

A verdict should not hang on how busy the machine was, and an interval of fewer than about 400
questions is wider than the margin: so many are asked unless they take far longer than that.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from timechat.evals.questions.run import choose
from timechat.evals.questions.sample import take_share
from timechat.evals.questions.suite import General

SHARE, LEAST_S = 0.05, 60.0
FOR_RETENTION = 2 / 3
# Tenths of every group; below two tenths (about 200 questions) no interval is worth its minutes.
TENTHS, FEWEST = 10, 2
# Four tenths are asked where they take no more than so many times the seconds allowed.
ENOUGH, PATIENCE = 4, 3.0
# Timed after a first few that warm the machine up; a slow model is timed on those alone.
WARM, TIMED, SLOW_S = 4, 24, 4.0


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds for a token of the general suite."""

    seconds_per_token: float

    def seconds(self, general: General) -> float:
        return self.seconds_per_token * count_tokens(general)


def measure_pace(model: PreTrainedModel, general: General) -> Pace:
    step = max(1, len(general.choices) // (WARM + TIMED))
    probe = general.choices[::step][: WARM + TIMED]
    warm, timed = probe[:WARM], probe[WARM:] or probe
    seconds = _time(model, General(warm, (), ()))
    if seconds > SLOW_S:
        return Pace(seconds / count_tokens(General(warm, (), ())))
    seconds = _time(model, General(timed, (), ()))
    return Pace(seconds / count_tokens(General(timed, (), ())))


def allowance(train_seconds: float) -> float:
    """The seconds that asking the general suite may take in a run of `train_seconds`."""
    return FOR_RETENTION * max(LEAST_S, SHARE * train_seconds)


def afford(general: General, pace: Pace, passes: int, seconds: float) -> General:
    """What is asked `passes` times: all of it within `seconds`, or tenths of every group."""
    whole = passes * pace.seconds(general)
    if whole <= seconds:
        return general
    enough = min(ENOUGH, int(PATIENCE * TENTHS * seconds / whole))
    tenths = max(FEWEST, enough, int(TENTHS * seconds / whole))
    return take_share(general, tenths / TENTHS)


def tell_share(asked: int, of: int) -> str:
    """A sentence for the report; empty where everything was asked."""
    if asked >= of:
        return ""
    return (
        f"asked {asked:,} of {of:,} general questions, the same share of every group: all of them "
        "would have taken longer than the promises may (5 % of the run, at least 60 s); "
        "`timechat compare RUN` asks every one"
    )


def count_tokens(general: General) -> int:
    choices = sum(len(c.prompt) + sum(map(len, c.answers)) for c in general.choices)
    return choices + sum(len(row.ids) for row in (*general.prose, *general.answers))


def _time(model: PreTrainedModel, general: General) -> float:
    started = time.perf_counter()
    choose(model, general.choices)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
