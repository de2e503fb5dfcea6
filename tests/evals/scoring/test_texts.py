"""Text measures against sacrebleu and by hand; broken formats, copies and labels are found."""

from __future__ import annotations

import json

import pytest
import sacrebleu

from timechat.errors import DataError
from timechat.evals.scoring.labels import OTHER, label_scores, labels_of
from timechat.evals.scoring.texts import (
    Copies,
    bleu,
    chrf,
    distinct,
    format_check,
    guess_format,
    refuses,
    rouge_l,
)

PAIRS = [
    ("The workshop is in Oakby.", "The workshop is in Oakby."),
    ("We open at nine on weekdays.", "From nine to five."),
    ("", "Yes."),
    ("Größe 42, bitte", "Größe 43 bitte"),
]


@pytest.mark.parametrize(("answer", "reference"), PAIRS)
def test_bleu_and_chrf_are_sacrebleus_own(answer: str, reference: str) -> None:
    theirs = sacrebleu.sentence_bleu(answer, [reference], use_effective_order=True).score
    assert bleu(answer, reference) == pytest.approx(theirs / 100, abs=1e-6)
    theirs = sacrebleu.sentence_chrf(answer, [reference]).score
    assert chrf(answer, reference) == pytest.approx(theirs / 100, abs=1e-6)


def test_rouge_l_is_the_longest_common_subsequence() -> None:
    # Lin (2004): "police kill the gunman" against "police killed the gunman"; articles go.
    assert rouge_l("police kill the gunman", "police killed the gunman") == pytest.approx(2 / 3)
    assert rouge_l("gunman the kill police", "police killed the gunman") == pytest.approx(1 / 3)
    assert rouge_l("", "something") == 0.0


@pytest.mark.parametrize(
    "answer", ["I'm sorry, but I cannot help.", "I can’t do that.", "As an AI, I have no body."]
)
def test_refusals_are_seen(answer: str) -> None:
    assert refuses(answer) == 1.0


@pytest.mark.parametrize("answer", ["You cannot park here.", "Sorry seems to be the hardest word."])
def test_answers_that_only_sound_like_refusals_are_none(answer: str) -> None:
    assert refuses(answer) == 0.0


def test_formats_are_checked_by_json_pattern_and_schema() -> None:
    assert format_check("json")('{"a": 1}') == 1.0
    assert format_check("json")('{"a": 1') == 0.0
    assert format_check(r"regex:[A-Z]{2}-\d+")("AB-12") == 1.0
    assert format_check(r"regex:[A-Z]{2}-\d+")("AB-12 or so") == 0.0
    schema = json.dumps({"type": "object", "required": ["city"]})
    assert format_check(schema)('{"city": "Oakby"}') == 1.0
    assert format_check(schema)('{"town": "Oakby"}') == 0.0
    assert format_check(schema)("Oakby") == 0.0


@pytest.mark.parametrize("wanted", ["regex:(", "yaml", '{"type": 7}'])
def test_a_format_that_is_none_is_refused(wanted: str) -> None:
    with pytest.raises(DataError, match="format"):
        format_check(wanted)


def test_json_is_expected_where_every_reference_is_json() -> None:
    assert guess_format(['{"a": 1}', "[1]"]) == "json"
    assert guess_format(['{"a": 1}', "no"]) == ""
    assert guess_format(["12", "13"]) == ""


def test_thirty_words_of_a_training_row_in_an_answer_are_copied() -> None:
    trained = " ".join(f"word{i}" for i in range(50))
    copies = Copies([trained])
    assert copies.score("Well: " + " ".join(f"WORD{i}" for i in range(10, 45))) == 1.0
    assert copies.score(" ".join(f"word{i}" for i in range(10, 35))) == 0.0


def test_a_model_that_says_one_thing_has_no_variety() -> None:
    assert distinct(["the same old answer"] * 10) == pytest.approx(0.1)
    assert distinct(["a b c", "d e f"]) == 1.0


def test_labels_have_accuracy_macro_f1_and_a_table() -> None:
    from sklearn.metrics import f1_score

    right = ["card", "cash", "card", "loan", "loan", "cash", "card", "cash"]
    given = ["card", "card", "card", "loan", "cash", "I do not know", "card", "cash"]
    found = label_scores(given, right)
    assert found.accuracy == pytest.approx(5 / 8)
    expected = f1_score(right, given, labels=["card", "cash", "loan"], average="macro")
    assert found.macro_f1 == pytest.approx(float(expected))
    assert found.confusion["cash"] == {"card": 1, OTHER: 1, "cash": 1}


def test_answers_are_no_labels() -> None:
    assert labels_of([f"The answer number {i} is long." for i in range(40)]) == []
