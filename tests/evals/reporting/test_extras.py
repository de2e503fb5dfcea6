"""Marked changes show every word once, and nothing that an answer holds becomes HTML."""

from __future__ import annotations

import html
import re

from hypothesis import given
from hypothesis import strategies as st

from timechat.evals.reporting.extras import mark_changes


@given(st.text(max_size=80), st.text(max_size=80))
def test_marks_lose_nothing_and_let_nothing_through(before: str, after: str) -> None:
    for text, marked in zip((before, after), mark_changes(before, after), strict=True):
        bare = re.sub(r"</?(?:ins|del)>", "", marked)
        assert "<" not in bare
        assert html.unescape(bare) == html.unescape(html.escape(text))


def test_only_the_words_that_differ_are_marked() -> None:
    assert mark_changes("In 1987 it was.", "In 2001 it was.") == (
        "In <del>1987</del> it was.",
        "In <ins>2001</ins> it was.",
    )
    assert "<script>" not in mark_changes("a", "<script>alert(1)</script>")[1]
