"""A chat template is a stranger's program: it renders as in transformers, within limits."""

from __future__ import annotations

import time

import pytest
from conftest import CHATML, build_tokenizer

from timechat.errors import ModelError
from timechat.model.render import PLAIN_TEMPLATE
from timechat.model.template import Template

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}"
    "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
BUSY = (
    "{%- macro say(m) -%}{{ m.role ~ ': ' ~ m.content | trim }}{%- endmacro -%}"
    "{%- set ns = namespace(count=0) -%}"
    "{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}"
    "{% set ns.count = ns.count + 1 %}"
    "{% generation %}{{ say(m) }}{% endgeneration %}{{ eos_token }}"
    "{{ {'a': ['<', 1]} | tojson(indent=2) }}{{ '%03d' % ns.count }}{{ '-' * 3 }}\n"
    "{% endfor %}{% if not tools and add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "plain": PLAIN_TEMPLATE, "llama-2": LLAMA_2, "busy": BUSY}
TALK = [
    {"role": "system", "content": "Be <brief> & {{ kind }}."},
    {"role": "user", "content": " hi {12345} "},
    {"role": "assistant", "content": "Hello 'you'"},
    {"role": "user", "content": "{% for %}"},
]


@pytest.mark.parametrize("generation", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_renders_as_plain_transformers_does(name: str, generation: bool) -> None:
    tokenizer = build_tokenizer(TEMPLATES[name])
    expected = tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=generation)
    template = Template(TEMPLATES[name], tokenizer.special_tokens_map)
    assert template.render(TALK, generation) == expected


def looped(times: str, body: str) -> str:
    return f"{{% set ns = namespace(s='ab') %}}{{% for i in range({times}) %}}{body}{{% endfor %}}"


BOMBS = {
    "a loop of loops": looped("99999", looped("99999", "")),
    "doubling": looped("60", "{% set ns.s = ns.s + ns.s %}"),
    "doubling by ~": looped("60", "{% set ns.s = ns.s ~ ns.s %}"),
    "a product": "{{ 'a' * 10000000000 }}",
    "a list": "{{ ([0] * 10000000000) | length }}",
    "a power": "{{ 9 ** (9 ** (9 ** 9)) }}",
    "a width": "{{ '%9999999999d' % 5 }}",
    "a form": "{{ '{:>9999999999}'.format(1) }}",
    "padding": "{{ 'a'.ljust(9999999999) }}",
    "a filter": "{{ 'a' | center(9999999999) }}",
    "replacing": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "endless output": looped("99999", "{{ 'a' * 1000 }}"),
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "its insides": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a file": "{% include '/etc/passwd' %}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_hostile_template_is_stopped_soon_and_with_one_message(name: str) -> None:
    started = time.monotonic()
    with pytest.raises(ModelError, match="chat template"):
        Template(BOMBS[name] + CHATML, {}).render(TALK, generation=False)
    assert time.monotonic() - started < 15


def test_a_template_with_no_grammar_is_refused() -> None:
    with pytest.raises(ModelError, match="no valid template"):
        Template("{% for %}", {})


def test_what_a_template_refuses_is_told_in_its_own_words() -> None:
    twice = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(ModelError, match="roles must alternate"):
        Template(LLAMA_2, {"bos_token": "<s>", "eos_token": "</s>"}).render(twice, generation=True)
