"""How far an export may lie from what was evaluated: one rule for every format.

Rounding is an error of known size, so what it does to a model can be found out without looking at
any export: `noise` gives the evaluated model errors of the format's own size, and it is heard
again. A right export moves the model about as far as that, a wrong one by more. Allowed is

    FACTOR times what the noise moved, and FLOOR for arithmetic in another order,
    but never more than CEILING,

for both figures: the mean change of a token's log-probability, and the largest change of a greedy
word's lead over the next best. FACTOR is 2 because one draw of noise stands for all: the mean
changes by a tenth from draw to draw, the largest by up to three quarters (LAB.md), and rounding
errors are even only roughly (a grid around zero loses up to a whole step at one end). The draws
were of the evaluated model alone; no export was looked at to set any of the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

from timechat.export.gate import Line, Tolerance, gap_of, leads_of

FACTOR = 2.0
# In fp32, sums in another order differ by some 1e-5 nats on the models measured; the rest is room
# for deeper ones.
FLOOR = Tolerance(0.003, 0.03)
# A nat a token makes each word e times less likely: another model, whichever format made it. At 5
# nats a word was 150 times likelier than the one that took its place.
CEILING = Tolerance(1.0, 5.0)
# An adapter's file is copied and read by the same code: nothing is rounded.
SAME = Tolerance(1e-4, 1e-3)


def tolerance_for(evaluated: Sequence[Line], roughened: Sequence[Line]) -> Tolerance:
    """What is allowed, from the evaluated model heard as it is and with the format's noise."""
    pairs = list(zip(evaluated, roughened, strict=True))
    gaps = [gap for one, two in pairs for gap in gap_of(one, two)]
    swings = [abs(a - b) for one, two in pairs for a, b in leads_of(one, two)]
    return Tolerance(
        min(CEILING.gap, FLOOR.gap + FACTOR * sum(gaps) / max(1, len(gaps))),
        min(CEILING.margin, FLOOR.margin + FACTOR * max(swings, default=0.0)),
    )
