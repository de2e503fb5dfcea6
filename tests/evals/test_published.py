"""Published annotations: their win rates and standard errors come out of our statistics.

Counts, rates and errors are those of AlpacaEval's leaderboards (`alpaca_eval_gpt4` and `claude`,
package alpaca_eval 0.6.6, Apache-2.0): pairs of answers against text-davinci-003's, one judged
preference each, a draw counting half.
"""

from __future__ import annotations

import math

import pytest
from scipy import stats

from timechat.evals.scoring.judge import SCORER
from timechat.evals.statistics.compare import compare
from timechat.records import Measure, Score

# judge, model, win rate in percent, standard error, wins, losses, draws
PUBLISHED = [
    ("alpaca_eval_gpt4", "gpt4", 95.27950310559004, 0.716281440286153, 761, 32, 12),
    ("alpaca_eval_gpt4", "gpt4_1106_preview", 97.69900497512438, 0.5104849118311993, 783, 16, 5),
    ("alpaca_eval_gpt4", "xwinlm-70b-v0.3", 97.636815920398, 0.5360407516038015, 785, 19, 0),
    ("alpaca_eval_gpt4", "mistral-medium", 96.83229813664596, 0.6145319996386234, 779, 25, 1),
    ("alpaca_eval_gpt4", "tulu-2-dpo-70b", 95.03105590062113, 0.7613100978662208, 764, 39, 2),
    ("claude", "gpt4", 77.01863354037268, 1.46803688292698, 614, 179, 12),
    ("claude", "claude", 75.83850931677019, 1.4981004247868313, 606, 190, 9),
    ("claude", "llama-2-70b-chat-hf", 72.91925465838509, 1.5622590981080728, 585, 216, 4),
]


def judged(wins: int, losses: int, draws: int) -> Measure:
    shares = [1.0] * wins + [0.0] * losses + [0.5] * draws
    after = [Score(f"q{i}", f"q{i}", share, SCORER) for i, share in enumerate(shares)]
    half = [Score(s.item, s.cluster, 0.5, SCORER) for s in after]
    return compare("share of wins", half, after, kind="gain", unit="share")


@pytest.mark.parametrize(
    ("judge", "model", "rate", "error", "wins", "losses", "draws"),
    PUBLISHED,
    ids=[f"{row[0]}-{row[1]}" for row in PUBLISHED],
)
def test_win_rate_and_standard_error_are_the_published_ones(
    judge: str, model: str, rate: float, error: float, wins: int, losses: int, draws: int
) -> None:
    found = judged(wins, losses, draws)
    assert 100 * found.after == pytest.approx(rate, abs=1e-6)
    reach = (found.ci95[1] - found.ci95[0]) / 2
    ours = reach / float(stats.t.ppf(0.975, found.n - 1))
    assert 100 * ours == pytest.approx(error, abs=1e-6)
    assert found.verdict == "improved"
    assert math.isclose(found.after - 0.5, found.difference)


def test_models_of_known_quality_are_told_apart_in_both_orders() -> None:
    wins, losses, draws = 614, 179, 12
    there, back = judged(wins, losses, draws), judged(losses, wins, draws)
    assert (there.verdict, back.verdict) == ("improved", "not_improved")
    assert there.difference == pytest.approx(-back.difference, abs=1e-12)
