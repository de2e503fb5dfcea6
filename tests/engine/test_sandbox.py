"""Templates that attack: they cost a refusal, and the next conversation is answered."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from conftest import CHATML, build_tokenizer

from timechat.engine.sandbox import SandboxScribe
from timechat.engine.scribe import MessageError
from timechat.errors import UserError
from timechat.model.render import Renderer

BOMB = (
    "{% if messages | length > 2 %}"
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
)
ESCAPE = "{{ ''.__class__.__mro__[1].__subclasses__() }}"


def test_a_loop_without_end_is_stopped_and_the_next_conversation_answered(tmp_path: Path) -> None:
    build_tokenizer(BOMB + CHATML).save_pretrained(tmp_path)

    async def play() -> None:
        scribe = SandboxScribe(tmp_path, render_s=60.0)
        await scribe.start()
        try:
            assert scribe.stop_ids
            hello = [{"role": "user", "content": "hi"}]
            expected = await scribe.prompt(hello, [])
            with pytest.raises(UserError, match=r"stopped: more than .* turns of its loops"):
                await scribe.prompt(hello * 3, [])
            assert await scribe.prompt(hello, []) == expected
            # What gets past the template's own limits meets the child's: it is killed.
            scribe.render_s = 1e-4
            with pytest.raises(MessageError, match=r"longer than 0\.0001 s"):
                await scribe.prompt(hello, [])
            scribe.render_s = 60.0
            assert await scribe.prompt(hello, []) == expected
        finally:
            await scribe.stop()

    asyncio.run(play())


def test_a_template_that_reaches_for_python_is_refused() -> None:
    with pytest.raises(Exception, match=r"unsafe|not safely"):
        Renderer(build_tokenizer(CHATML + ESCAPE))


def test_tools_are_refused_where_the_template_would_leave_them_out() -> None:
    from timechat.engine.scribe import render

    renderer = Renderer(build_tokenizer())
    tool = {"type": "function", "function": {"name": "f"}}
    with pytest.raises(UserError, match="no place for tools"):
        render(renderer, [{"role": "user", "content": "hi"}], [tool])
