"""One JSON line: what is read, and the reason for what is not."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timechat.conversation import Conversation, Message
from timechat.data.items import BadRowError, json_item
from timechat.data.rows import to_conversation
from timechat.data.shapes.shape import Reading
from timechat.data.shapes.turns import CHAT
from timechat.data.verdicts import Drop

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
NAMES = TEXT.map(str.strip).filter(bool)
MESSAGES = st.lists(
    st.builds(
        Message,
        role=st.sampled_from(["system", "user", "assistant"]),
        content=TEXT,
        weight=st.floats(0, 1),
    ),
    min_size=1,
    max_size=4,
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "role", "content", "weight", "id", "tags", "x"]), inner
        )
    ),
    max_leaves=8,
)
ANSWERED = '{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}'


def parse_row(text: str, source: str, line: int, ignored: set[str]) -> Conversation:
    reading = Reading({"messages": "messages"}, ignored=ignored)
    return to_conversation(json_item(text, line), CHAT, reading, source)


def reason(text: str) -> str:
    with pytest.raises(BadRowError) as caught:
        parse_row(text, "f", 1, set())
    return caught.value.drop.reason


@given(messages=MESSAGES, id=NAMES, group=NAMES, tags=st.lists(NAMES), answers=st.lists(NAMES))
def test_a_conversation_written_as_json_is_read_back(
    messages: list[Message], id: str, group: str, tags: list[str], answers: list[str]
) -> None:
    row = Conversation(id, tuple(messages), "f", 3, group, tuple(tags), tuple(answers))
    text = json.dumps({k: v for k, v in row.to_dict().items() if k not in ("source", "line")})
    assert parse_row(text, "f", 3, set()) == row


@given(value=ANYTHING)
def test_any_json_is_a_conversation_or_a_drop_with_a_writable_reason(value: object) -> None:
    drop = Drop("none", "")
    try:
        parse_row(json.dumps(value), "f", 1, set())
    except BadRowError as error:
        drop = error.drop
    assert drop.reason
    assert drop.detail.encode("utf-8") is not None


@given(text=st.text(max_size=30))
def test_any_text_is_a_conversation_or_a_drop(text: str) -> None:
    with pytest.raises(BadRowError):
        parse_row(text, "f", 1, set())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "not_json"),
        ("[" * 100_000, "not_json"),
        ('{"messages": ' + "9" * 5000 + "}", "not_json"),
        ("[1]", "not_an_object"),
        ("{}", "no_messages"),
        ('{"messages": []}', "no_messages"),
        ('{"messages": "hi"}', "messages_not_a_list"),
        ('{"messages": ["hi"]}', "message_not_an_object"),
        ('{"messages": [{"role": "usr", "content": "x"}]}', "unknown_role"),
        ('{"messages": [{"role": null, "content": "x"}]}', "unknown_role"),
        ('{"messages": [{"role": "user", "content": ["x"]}]}', "content_not_a_string"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "lone_surrogate"),
        ('{"messages": [{"role": "user", "content": "x", "weight": NaN}]}', "bad_weight"),
        ('{"messages": [{"role": "user", "content": "x", "weight": true}]}', "bad_weight"),
        (
            '{"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}',
            "tool_call",
        ),
        (f'{{"messages": [{ANSWERED}], "answers": [" "]}}', "bad_answers"),
        (f'{{"messages": [{ANSWERED}], "answers": "a"}}', "bad_answers"),
        (f'{{"messages": [{ANSWERED}], "tags": [1]}}', "bad_tags"),
        (f'{{"messages": [{ANSWERED}], "group": 1.5}}', "bad_group"),
        (f'{{"messages": [{ANSWERED}], "id": ["x"]}}', "bad_id"),
        (f'{{"messages": [{ANSWERED}], "messages": []}}', "repeated_key"),
    ],
)
def test_a_bad_row_has_its_reason(text: str, expected: str) -> None:
    assert reason(text) == expected


def test_an_unknown_role_comes_with_the_nearest_one() -> None:
    with pytest.raises(BadRowError) as caught:
        parse_row('{"messages": [{"role": "asistant", "content": "x"}]}', "f", 1, set())
    assert "'assistant'" in caught.value.drop.detail


def test_unknown_keys_are_ignored_and_named() -> None:
    ignored: set[str] = set()
    text = (
        '{"messages": [{"role": "user", "content": "q", "name": "Bo"}, '
        '{"role": "assistant", "content": "a"}], "scenario": 1}'
    )
    parse_row(text, "f", 1, ignored)
    assert ignored == {"scenario", "messages.name"}


def test_a_number_is_a_name_and_the_rows_own_source_becomes_a_tag() -> None:
    row = parse_row(
        f'{{"messages": [{ANSWERED}], "id": 7, "group": 0, "source": "faq"}}', "f", 1, set()
    )
    assert (row.id, row.group, row.source, row.tags) == ("7", "0", "f", ("source:faq",))
