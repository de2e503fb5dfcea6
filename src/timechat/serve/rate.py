"""How many requests a key may send: each has a bucket of them that fills steadily.

How many answers run at once is the gate's matter; this holds floods of short ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from timechat.serve.keys import Caller


class Rate:
    """`per_minute` requests for each caller, who may send them all at once (None: no bound).

    Callers without keys are one caller. Only valid keys come here, so there are as many buckets.
    """

    def __init__(self, per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._left: dict[Caller, tuple[float, float]] = {}  # requests, and when they were counted

    def take(self, caller: Caller) -> float:
        """Take one request out: 0.0, or the seconds until there is one to take."""
        if self.per_minute is None:
            return 0.0
        now, a_second = self._clock(), self.per_minute / 60
        left, counted = self._left.get(caller, (float(self.per_minute), now))
        left = min(float(self.per_minute), left + (now - counted) * a_second)
        if left < 1.0:
            self._left[caller] = left, now
            return (1.0 - left) / a_second
        self._left[caller] = left - 1.0, now
        return 0.0
