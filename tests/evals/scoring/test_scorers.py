"""String scorers: what counts as the same answer, and what does not."""

from __future__ import annotations

import pytest

from timechat.conversation import Conversation, Message
from timechat.evals.scoring.scorers import (
    answer_score,
    contains,
    exact_match,
    normalize,
    scorer_name,
    token_f1,
)


def make_question(reference, answers=()):
    messages = (Message("user", "Which?"), Message("assistant", reference))
    return Conversation("q", messages, answers=tuple(answers))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The  Cat, sat!", ["cat", "sat"]),
        ("a dog and an owl", ["dog", "and", "owl"]),
        ("Don’t don't", ["dont", "dont"]),
        ("the U.S. army", ["us", "army"]),
        ("1,234,567 or 1,2", ["1234567", "or", "1", "2"]),
        ("at 10:30, 3.5 km.", ["at", "10:30", "3.5", "km"]),
        ("-5 or 7-5 or \u22125", ["-5", "or", "7", "5", "or", "-5"]),
        ("**card_arrival**_", ["card_arrival"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("東京は", ["東", "京", "は"]),
        ("A", ["a"]),
        ("!?", []),
    ],
)
def test_words_are_compared_without_case_punctuation_and_articles(text, words):
    assert normalize(text) == words


@pytest.mark.parametrize(
    ("text", "digits"),
    [
        ("zero", "0"),
        ("Nine", "9"),
        ("twelve", "12"),
        ("nineteen", "19"),
        ("twenty", "20"),
        ("twenty-seven", "27"),
        ("Twenty seven", "27"),
        ("ninety\u2011nine", "99"),
        ("seven-year", "7 year"),
        ("someone", "someone"),
        ("seventh", "seventh"),
        ("twenty-first", "20 first"),
    ],
)
def test_number_words_up_to_99_become_digits(text, digits):
    assert normalize(text) == digits.split()


def test_exact_match_forgives_form_and_nothing_else():
    assert exact_match(" The Card_Arrival. ", "card_arrival") == 1
    assert exact_match("card_arrival please", "card_arrival") == 0
    assert exact_match("B", "A") == 0
    assert exact_match("", "yes") == 0


def test_exact_match_compares_signs_where_there_are_no_words():
    assert exact_match("👍", "👍") == 1
    assert exact_match("👎", "👍") == 0


def test_token_f1_is_the_harmonic_mean_of_precision_and_recall():
    # 2 shared words of 3 given and 4 wanted: precision 2/3, recall 1/2.
    assert token_f1("red green blue", "red green white black") == pytest.approx(4 / 7)
    assert token_f1("red red", "red") == pytest.approx(2 / 3)
    assert token_f1("", "red") == 0
    assert token_f1("The red.", "red") == 1


def test_contains_wants_an_unbroken_run_of_words():
    assert contains("It was founded by Maria Keller in 1911.", ["maria keller"]) == 1
    assert contains("Maria, born Keller", ["Maria Keller"]) == 0
    assert contains("Twenty-seven years", ["28", "27"]) == 1
    assert contains("in 1270", ["27"]) == 0
    assert contains("concatenate", ["cat"]) == 0
    assert contains("答えは東京です", ["東京"]) == 1
    assert contains("The answer is A.", ["A"]) == 1
    assert contains("The answer is B.", ["A"]) == 0
    assert contains("anything", [""]) == 0


@pytest.mark.parametrize(
    ("reference", "answers", "name"),
    [
        ("It opens at 10:30.", ["10:30"], "contains/1"),
        ("card_arrival", [], "exact_match/1"),
        ("lost-or-stolen-card", [], "exact_match/1"),
        ("very good indeed", [], "exact_match/1"),
        ("It opens at half past ten.", [], "token_f1/1"),
        ("図書館は十時に開きます。", [], "token_f1/1"),
    ],
)
def test_the_scorer_fits_the_question(reference, answers, name):
    question = make_question(reference, answers)
    assert scorer_name(question) == name
    assert answer_score(reference, question) == 1


def test_answer_score_follows_the_scorer():
    assert answer_score("At 10:30, I think.", make_question("It opens at 10:30.", ["10:30"])) == 1
    assert answer_score("At 9.", make_question("It opens at 10:30.", ["10:30"])) == 0
    assert answer_score("spam!", make_question("Spam")) == 1
    assert answer_score("not spam", make_question("Spam")) == 0
    assert 0 < answer_score("It opens at noon", make_question("It opens at half past ten.")) < 1
