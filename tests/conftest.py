"""Tiny models and tokenizers built in-process: hermetic, and quick enough to build per test."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from databases import cluster, ledger, ledger_url  # noqa: F401 - fixtures for every test
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from timechat.conversation import Conversation, Message
from timechat.engine.protocol import Capabilities
from timechat.evals.questions import suite
from timechat.model.load import Loaded, Source
from timechat.model.render import Renderer

# The fixtures of tests/faults, which has no conftest of its own: two would bear one name.
pytest_plugins = ["harness", "no_pickle"]

# A busy machine may take a while for a file, so no property has a deadline.
settings.register_profile("files", deadline=None, max_examples=40)
settings.load_profile("files")

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: every text has tokens, none is unknown."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate(alphabet)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer


def build_model(seed: int = 0, **overrides: object) -> LlamaForCausalLM:
    """A four-headed Llama with shared key heads, in fp32."""
    settings: dict[str, object] = {
        "vocab_size": 264,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "attn_implementation": "sdpa",
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **overrides}))
    # Random weights of the usual size answer everything alike; larger ones tell inputs apart.
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def conversation(name: str, *turns: str) -> Conversation:
    """User and assistant in turn."""
    roles = ("user", "assistant")
    messages = tuple(Message(roles[i % 2], text) for i, text in enumerate(turns))
    return Conversation(name, messages)


ROWS = [
    conversation("a", "When are you open?", "From nine to five."),
    conversation("b", "Hi", "Hello!", "And on Sundays?", "We are closed then."),
    conversation("c", "Who founded it?", "Tobias Fenn."),
    conversation("d", "x", "A much longer answer than the others, to make the lengths differ."),
]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture
def model() -> LlamaForCausalLM:
    return build_model()


@pytest.fixture
def renderer(tokenizer: PreTrainedTokenizerFast) -> Renderer:
    return Renderer(tokenizer)


@pytest.fixture
def rows() -> list[Conversation]:
    return list(ROWS)


@pytest.fixture
def loaded(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Loaded:
    return Loaded(Source("tiny", Path("tiny")), model, tokenizer, Renderer(tokenizer))


@contextmanager
def part_of_suite(of_questions: int, of_texts: int) -> Generator[None]:
    """One row in so many of the general suite: a byte tokenizer makes every question long."""
    whole = suite._rows
    step = dict.fromkeys(suite.ITEMS, of_questions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "_rows", lambda name: whole(name)[:: step.get(name, of_texts)])
        yield


@pytest.fixture
def small_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """A fortieth of the questions, a seventh of the texts, and a cache of the test's own."""
    monkeypatch.setenv("TIMECHAT_CACHE", str(tmp_path / "cache"))
    with part_of_suite(40, 7):
        yield


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Generator[str]:
    """A server on this machine that answers by `handler`, at the address given."""
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def write_base(folder: Path, seed: int = 0) -> Path:
    build_model(seed=seed).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_base(tmp_path: Path) -> Path:
    """A model folder on disk."""
    return write_base(tmp_path / "base")


async def longest_hold() -> float:
    """The most processor time that this thread spent between two turns of a waiting task."""
    worst = 0.0
    try:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0.001)
            worst = max(worst, time.thread_time() - before)
    except asyncio.CancelledError:
        return worst


def start_served(base: Path) -> Capabilities:
    """What the engine that `serve` takes for `base` says of itself, once it has started."""
    from timechat.stages.serving.serve import find_models, open_model

    (found,) = find_models([str(base)], print)

    async def run() -> Capabilities:
        responder = open_model(found)
        await responder.start()
        try:
            return responder.capabilities
        finally:
            await responder.stop()

    return asyncio.run(run())
