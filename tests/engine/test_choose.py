"""The nucleus is what a full sort finds, however flat the distribution is."""

from __future__ import annotations

import pytest
import torch

from timechat.engine.choose import choose, nucleus
from timechat.engine.protocol import Sampling


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.01, 1.0, 6.0])
def test_the_nucleus_is_that_of_a_full_sort(share: float, spread: float) -> None:
    torch.manual_seed(0)
    probabilities = (torch.randn(5000) * spread).softmax(-1)
    ranked, tokens = probabilities.sort(descending=True)
    inside = ranked.cumsum(-1) - ranked < share
    found, which = nucleus(probabilities, share)
    assert set(which.tolist()) == set(tokens[inside].tolist())
    assert torch.equal(found, probabilities[which])


def test_samples_come_as_often_as_they_are_likely() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -3.0])
    generator = torch.Generator().manual_seed(0)
    for top_p, left in ((1.0, 4), (0.9, 2)):
        sampling = Sampling(temperature=1.0, top_p=top_p)
        drawn = torch.tensor([choose(logits, sampling, generator) for _ in range(4000)])
        counted = torch.bincount(drawn, minlength=4) / 4000
        expected = logits.softmax(-1)
        expected[left:] = 0
        assert torch.allclose(counted, expected / expected.sum(), atol=0.03)
