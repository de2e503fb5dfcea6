"""A Modelfile says the same template: by Go's rules it gives the text that was trained on."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import gotemplate
import pytest
from conftest import CHATML
from tiny import byte_tokenizer, piece_tokenizer

from timechat.conversation import Message
from timechat.export.ollama import read_chain, write_modelfile
from timechat.model.render import Renderer

DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are \"brief\".<|im_end|>\n"
    "{% endif %}" + CHATML
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
BRACES = (
    "{% for m in messages %}{{ '{{' + m['role'] + '}} \\\\ ' }}{{ m['content'] }}"
    "{{ '<|im_end|>\t\"\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '{{assistant}} ' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML, "a default system prompt": DEFAULT_SYSTEM, "zephyr": ZEPHYR, "braces": BRACES,
}  # fmt: skip
TURNS = [
    Message("user", "When are  you open?\n\n  Tell me. {{ .Role }}"),
    Message("assistant", "From nine to five."),
    Message("user", 'Even on "Sundays"?\\n'),
]
CONVERSATIONS = {
    "one question": TURNS[:1],
    "several turns": TURNS,
    "a system turn": [Message("system", "Answer for the library."), *TURNS],
}


def renderer_of(template: str) -> Renderer:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return Renderer(tokenizer)


def modelfile(renderer: Renderer, bos: str = "") -> str:
    chain = read_chain(renderer, bos)
    assert chain is not None
    return write_modelfile(chain, "m.gguf", ["<|im_end|>"], 2048)


def parse(text: str) -> tuple[str, str]:
    """Template and system prompt, as Ollama's parser takes what stands between triple quotes."""
    found = {
        name: re.search(rf'^{name} """(.*?)"""$', text, re.DOTALL | re.MULTILINE)
        for name in ("TEMPLATE", "SYSTEM")
    }
    assert found["TEMPLATE"] is not None
    return found["TEMPLATE"][1], found["SYSTEM"][1] if found["SYSTEM"] else ""


def data_of(messages: list[Message], system: str) -> dict[str, Any]:
    """What Ollama hands to a template: its Modelfile's system prompt first where none is given."""
    rows = [{"Role": m.role, "Content": m.content} for m in messages]
    if system and rows[0]["Role"] != "system":
        rows.insert(0, {"Role": "system", "Content": system})
    return {"Messages": rows}


def rendered(renderer: Renderer, messages: list[Message]) -> str:
    rows = [{"role": m.role, "content": m.content} for m in messages]
    found = renderer.tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True)
    return str(found)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_gos_rendering_is_the_evaluated_one(name: str, conversation: str) -> None:
    renderer, messages = renderer_of(TEMPLATES[name]), CONVERSATIONS[conversation]
    template, system = parse(modelfile(renderer))
    assert gotemplate.render(template, data_of(messages, system)) == rendered(renderer, messages)


def test_a_tokenizer_that_begins_with_its_own_token_leaves_that_to_the_reader() -> None:
    tokenizer = piece_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}" + ZEPHYR
    renderer = Renderer(tokenizer)
    template, system = parse(modelfile(renderer, "<s>"))
    for messages in CONVERSATIONS.values():
        found = gotemplate.render(template, data_of(messages, system))
        assert "<s>" + found == rendered(renderer, messages)


def test_the_template_of_a_family_that_has_none_is_a_chain_too() -> None:
    renderer = Renderer(piece_tokenizer())
    template, system = parse(modelfile(renderer))
    for messages in CONVERSATIONS.values():
        assert gotemplate.render(template, data_of(messages, system)) == rendered(
            renderer, messages
        )


def test_a_template_whose_turns_look_at_each_other_has_no_modelfile() -> None:
    counted = "{% for m in messages %}{{ loop.index }}{{ m['content'] }}<|im_end|>{% endfor %}"
    assert read_chain(renderer_of(counted)) is None


@pytest.mark.parametrize(
    "text", ['a """ b', "c\nd", 'said "so"', 'ends with a quote"', "back\\slash"]
)
def test_a_system_prompt_of_any_words_comes_back_or_there_is_no_modelfile(text: str) -> None:
    template = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n{{ " + json.dumps(text)
    renderer = renderer_of(template + " }}<|im_end|>\n{% endif %}" + CHATML)
    chain = read_chain(renderer)
    if '"""' in text or text.endswith('"'):
        assert chain is None
        return
    written, system = parse(modelfile(renderer))
    assert gotemplate.render(written, data_of(TURNS, system)) == rendered(renderer, TURNS)


def test_stop_words_are_written_so_that_ollama_reads_them() -> None:
    chain = read_chain(renderer_of(CHATML))
    assert chain is not None
    text = write_modelfile(chain, "m.gguf", ["<|im_end|>", 'a"b\\'], 2048)
    # Ollama takes quotes away and unescapes nothing.
    assert 'PARAMETER stop "<|im_end|>"\n' in text
    assert 'PARAMETER stop """a"b\\"""\n' in text


@pytest.mark.slow
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_llama_cpps_own_rendering_is_the_same(conversation: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    renderer, messages = renderer_of(CHATML), CONVERSATIONS[conversation]
    rows = (llama_cpp.llama_chat_message * len(messages))(
        *((m.role.encode(), m.content.encode()) for m in messages)
    )
    buffer = ctypes.create_string_buffer(4096)
    length = llama_cpp.llama_chat_apply_template(
        CHATML.encode(), rows, len(messages), True, buffer, len(buffer)
    )
    assert buffer.raw[:length].decode() == rendered(renderer, messages)
    template, system = parse(modelfile(renderer))
    assert gotemplate.render(template, data_of(messages, system)) == buffer.raw[:length].decode()


PROGRAM = """package main

import ("encoding/json"; "os"; "text/template")

func main() {
\tvar given struct { Template string; Data map[string]any }
\tif err := json.NewDecoder(os.Stdin).Decode(&given); err != nil { panic(err) }
\tmade := template.Must(template.New("").Parse(given.Template))
\tif err := made.Execute(os.Stdout, given.Data); err != nil { panic(err) }
}
"""


@pytest.mark.slow
def test_go_itself_renders_the_same(tmp_path: Path) -> None:
    go = shutil.which("go") or shutil.which("go", path="/usr/lib/go/bin:/usr/lib/go-1.19/bin")
    if go is None:
        pytest.skip("needs the Go compiler")
    (tmp_path / "main.go").write_text(PROGRAM)
    built = ["env", f"HOME={tmp_path}", go, "build", "-o", "render", "main.go"]
    subprocess.run(built, cwd=tmp_path, check=True)
    for source in TEMPLATES.values():
        renderer = renderer_of(source)
        template, system = parse(modelfile(renderer))
        for messages in CONVERSATIONS.values():
            given = json.dumps({"Template": template, "Data": data_of(messages, system)})
            done = subprocess.run(
                [tmp_path / "render"], input=given, capture_output=True, text=True, check=True
            )
            assert done.stdout == rendered(renderer, messages)
            assert done.stdout == gotemplate.render(template, data_of(messages, system))
