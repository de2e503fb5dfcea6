"""The renderer's four properties, and that text is never a control token."""

from __future__ import annotations

import pytest
from conftest import CHATML, ROWS, build_tokenizer, conversation
from hypothesis import given
from hypothesis import strategies as st

from timechat.conversation import Message
from timechat.errors import ModelError
from timechat.model.render import PLAIN_TEMPLATE, Renderer, with_default_system

TEMPLATES = {"chatml": CHATML, "plain": PLAIN_TEMPLATE}
RENDERERS = {name: Renderer(build_tokenizer(text)) for name, text in TEMPLATES.items()}

texts = st.text(st.characters(codec="utf-8", exclude_characters="\ue0a1\ue0a2"), min_size=1).map(
    lambda text: text.strip() or "x"
)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_the_prompt_equals_the_templates(name: str, row) -> None:
    renderer = RENDERERS[name]
    assert renderer.prompt(row.question) == renderer.whole(row.question, generation=True)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_the_trained_ids_equal_the_templates(name: str, row) -> None:
    renderer = RENDERERS[name]
    assert renderer.example(row.messages).ids == renderer.whole(row.messages, generation=False)


@pytest.mark.parametrize("name", TEMPLATES)
@given(question=texts, answer=texts)
def test_the_trained_prefix_is_the_served_prompt(name: str, question: str, answer: str) -> None:
    renderer = RENDERERS[name]
    row = conversation("x", question, answer)
    prompt = renderer.prompt(row.question)
    assert renderer.example(row.messages).ids[: len(prompt)] == prompt


@pytest.mark.parametrize("name", TEMPLATES)
@given(question=texts, answer=texts)
def test_a_trained_answer_parses_back_to_itself(name: str, question: str, answer: str) -> None:
    renderer = RENDERERS[name]
    rendered = renderer.example(conversation("x", question, answer).messages)
    trained = [i for i, w in zip(rendered.ids, rendered.weights, strict=True) if w > 0]
    assert trained[-1] in renderer.stop_ids
    assert renderer.tokenizer.decode(trained[:-1]) == answer


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_longer_conversation_extends_a_shorter_one(name: str) -> None:
    renderer = RENDERERS[name]
    row = ROWS[1]
    short = renderer.example(row.messages[:2]).ids
    assert renderer.example(row.messages).ids[: len(short)] == short


def test_a_special_token_in_a_users_text_is_data(renderer: Renderer) -> None:
    row = conversation("x", "say <|im_end|> please", "no")
    rendered = renderer.example(row.messages)
    stop = next(iter(renderer.stop_ids))
    assert rendered.ids.count(stop) == 2  # the two turns' own ends
    assert "say <|im_end|> please" in renderer.tokenizer.decode(rendered.ids)


def test_an_assistant_turn_of_weight_zero_is_context() -> None:
    renderer = RENDERERS["chatml"]
    messages = (
        Message("user", "a"),
        Message("assistant", "skip", 0.0),
        Message("user", "b"),
        Message("assistant", "learn"),
    )
    rendered = renderer.example(messages)
    trained = [i for i, w in zip(rendered.ids, rendered.weights, strict=True) if w > 0]
    assert renderer.tokenizer.decode(trained) == "learn<|im_end|>"


def test_a_default_system_prompt_equals_a_given_one() -> None:
    system = 'You\'re "the" desk {{ 1 }} {% x %} \\ of Ö.'
    plain, served = build_tokenizer(), build_tokenizer()
    served.chat_template = with_default_system(CHATML, system)
    given_one = [Message("system", system), Message("user", "hi")]
    assert Renderer(served).prompt([Message("user", "hi")]) == Renderer(plain).prompt(given_one)


def test_a_template_that_drops_the_answer_is_refused() -> None:
    user_only = "{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}"
    template = "{% for m in messages %}" + user_only + "{% endfor %}"
    with pytest.raises(ModelError, match="drops the assistant turn"):
        Renderer(build_tokenizer(template))


def test_a_template_without_a_stop_token_is_refused() -> None:
    template = "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}"
    with pytest.raises(ModelError, match="never stop"):
        Renderer(build_tokenizer(template))


def test_a_text_is_learned_whole_under_no_template_and_a_special_token_in_it_is_plain_text(
    renderer: Renderer,
) -> None:
    text = "Once <|im_end|> upon a time."
    rendered = renderer.example([Message("assistant", text)])
    assert renderer.tokenizer.decode(rendered.ids) == text + "<|im_end|>"
    assert set(rendered.weights) == {1.0}
    assert rendered.ids.count(renderer.tokenizer.eos_token_id) == 1
    opening, rest = Message("assistant", "Once ", 0.0), Message("assistant", "upon a time.")
    assert renderer.tokenizer.decode(renderer.prompt([opening])) == "Once "
    both = renderer.example([opening, rest])
    assert both.weights[:5] == [0.0] * 5
    assert both.ids[: len(renderer.prompt([opening]))] == renderer.prompt([opening])
