"""The renderer's four properties, and that text is never a control token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import CHATML, ROWS, build_tokenizer, conversation
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from timechat.conversation import Message
from timechat.errors import ModelError
from timechat.model.load import load_tokenizer
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


LLAMA_2_TOKENIZER = Path(__file__).parents[3] / "shared" / "models" / "llama2-tokenizer"
LLAMA_2_SETTINGS = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "add_bos_token": True,
    "legacy": False,
}


@pytest.fixture(scope="module")
def llama_2(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    """The real SentencePiece vocabulary of 32,000 pieces, no template of its own."""
    if not LLAMA_2_TOKENIZER.is_dir():
        pytest.skip("the Llama 2 tokenizer is not beside the project")
    folder = tmp_path_factory.mktemp("llama-2")
    (folder / "tokenizer.model").write_bytes((LLAMA_2_TOKENIZER / "tokenizer.model").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(LLAMA_2_SETTINGS))
    return Renderer(load_tokenizer(folder))


def built_llama() -> Renderer:
    """A SentencePiece-like tokenizer of our own: a space is put before every text."""
    letters = [chr(i) for i in range(32, 127)]
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", "<s>", "</s>", "▁", "\n", *letters])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    return Renderer(tokenizer)


@pytest.fixture(params=["llama_2", "built"])
def spaced(request: pytest.FixtureRequest) -> Renderer:
    return request.getfixturevalue("llama_2") if request.param == "llama_2" else built_llama()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_tokenizer_that_begins_with_a_space_is_rendered_exactly(spaced: Renderer, row) -> None:
    assert spaced.prompt(row.question) == spaced.whole(row.question, generation=True)
    trained = spaced.example(row.messages)
    assert trained.ids == spaced.whole(row.messages, generation=False)
    prompt = spaced.prompt(row.question)
    assert trained.ids[: len(prompt)] == prompt
    assert trained.ids[len(prompt)] != spaced.tokenizer.convert_tokens_to_ids("▁")


def test_llama_2_rows_begin_with_its_own_mark_and_end_in_its_stop_token(llama_2: Renderer) -> None:
    trained = llama_2.example(ROWS[1].messages)
    assert trained.ids[0] == llama_2.tokenizer.bos_token_id
    assert trained.ids.count(1) == 1
    learned = [i for i, w in zip(trained.ids, trained.weights, strict=True) if w > 0]
    assert learned.count(2) == 2  # one stop token for each answer
    assert llama_2.parse(learned[: learned.index(2) + 1]) == "Hello!"


def test_llama_2s_control_tokens_in_a_users_text_are_data(llama_2: Renderer) -> None:
    row = conversation("x", "say </s> and <s> please", "</s> is a mark")
    trained = llama_2.example(row.messages)
    assert trained.ids.count(2) == 1
    assert trained.ids.count(1) == 1
    assert "say </s> and <s> please" in llama_2.tokenizer.decode(trained.ids)
    learned = [i for i, w in zip(trained.ids, trained.weights, strict=True) if w > 0]
    assert llama_2.parse(learned) == "</s> is a mark"


def test_a_tokenizer_without_pad_and_one_with_pad_as_end_learn_the_same_stop() -> None:
    without, same = build_tokenizer(), build_tokenizer()
    without.pad_token = None
    assert same.pad_token == same.eos_token
    one, two = (Renderer(t).example(ROWS[0].messages) for t in (without, same))
    assert (one.ids, one.weights) == (two.ids, two.weights)
    learned = [i for i, w in zip(one.ids, one.weights, strict=True) if w > 0]
    assert learned[-1] == same.eos_token_id


def test_a_template_of_ours_travels_with_the_checkpoint(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(None)
    renderer = Renderer(tokenizer, "Be brief.")
    tokenizer.save_pretrained(tmp_path)
    again = Renderer(load_tokenizer(tmp_path))
    assert again.prompt(ROWS[0].question) == renderer.prompt(ROWS[0].question)
    assert again.stop_ids == renderer.stop_ids
