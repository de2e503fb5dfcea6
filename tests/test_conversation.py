"""Message and Conversation."""

from hypothesis import given
from hypothesis import strategies as st

from timechat.conversation import Conversation, Message, as_role, content_hash

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
MESSAGES = st.lists(
    st.builds(Message, st.sampled_from(["system", "user", "assistant"]), TEXT, st.floats(0, 1)),
    min_size=1,
    max_size=4,
).map(tuple)


@given(
    st.builds(
        Conversation,
        TEXT.filter(bool),
        MESSAGES,
        TEXT,
        st.integers(0, 99),
        TEXT,
        st.lists(TEXT).map(tuple),
        st.lists(TEXT).map(tuple),
    )
)
def test_a_conversation_equals_its_dict_read_back(row: Conversation) -> None:
    assert Conversation.from_dict(row.to_dict()) == row


def test_a_row_without_id_gets_its_contents_hash() -> None:
    row = Conversation.from_dict({"messages": [{"role": "user", "content": "q"}]})
    assert row.id == content_hash((Message("user", "q"),))


def test_the_hash_sees_roles_and_contents_and_nothing_else() -> None:
    base = content_hash((Message("user", "a"),))
    assert base == content_hash((Message("user", "a", weight=0),))
    assert base != content_hash((Message("assistant", "a"),))
    assert base != content_hash((Message("user", "a"), Message("user", "")))


def test_a_system_prompt_goes_to_rows_that_bring_none() -> None:
    row = Conversation("1", (Message("user", "q"), Message("assistant", "a")))
    dressed = row.with_system("Be kind.")
    assert dressed.messages[0] == Message("system", "Be kind.")
    assert dressed.with_system("Be rude.") == dressed
    assert row.with_system("") == row


def test_question_reference_and_cluster() -> None:
    row = Conversation("1", (Message("user", "q"), Message("assistant", "a")), group="g")
    assert (row.question, row.reference, row.cluster) == ((Message("user", "q"),), "a", "g")
    assert Conversation("1", row.messages).cluster == "1"


def test_only_known_roles_are_roles() -> None:
    assert as_role("user") == "user"
    assert as_role("tool") is None
    assert as_role(3) is None
