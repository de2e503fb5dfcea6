"""Tiny models of every family that GGUF export knows, and tokenizers of the kinds it knows."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from conftest import CHATML
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.tokenization_utils_base import generate_merges

# Tiny matrices on several threads only wait for each other.
torch.set_num_threads(1)

TEXT = [
    "When are you open? We are open from nine to five, every day but Sunday.",
    "The library lends books, maps and 3 telescopes; call 555-0123 for the fourth.",
    "def area(radius):\n    return 3.14159 * radius ** 2  # a circle's\n",
    "Crème brûlée, naïve façade, 東京, Привет, مرحبا, 🙂 and \t tabs.",
    "  two spaces, then   three; it's, we'll, I'D and they've.\n\n\nThree lines down.",
]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)
SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
GROUPED = {"intermediate_size": 96, "num_key_value_heads": 2}
ROPE = {"rope_theta": 50_000.0, "rope_type": "default"}
LLAMA3_ROPE = {
    "rope_theta": 50_000.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
GEMMA_ROPE = {
    "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
}
GEMMA = {**GROUPED, "head_dim": 16, "tie_word_embeddings": True}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**GROUPED, "tie_word_embeddings": True, "rope_parameters": ROPE}),
    "llama untied": ("llama", {**GROUPED, "tie_word_embeddings": False}),
    "llama biased": ("llama", {**GROUPED, "attention_bias": True, "mlp_bias": True}),
    "llama 3": ("llama", {**GROUPED, "rope_parameters": LLAMA3_ROPE}),
    "llama linear": (
        "llama",
        {**GROUPED, "rope_parameters": {**ROPE, "rope_type": "linear", "factor": 2.0}},
    ),
    "mistral": ("mistral", {**GROUPED, "sliding_window": None}),
    "qwen2": ("qwen2", {**GROUPED, "rope_parameters": ROPE}),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 32}),
    "gemma": ("gemma", GEMMA),
    "gemma2": (
        "gemma2",
        {**GEMMA, "query_pre_attn_scalar": 16, "sliding_window": 64},
    ),
    "gemma3": (
        "gemma3_text",
        {**GEMMA, "query_pre_attn_scalar": 16, "sliding_window": 64, "num_hidden_layers": 6,
         "rope_parameters": GEMMA_ROPE},
    ),
    "stablelm": ("stablelm", {**GROUPED, "use_qkv_bias": True}),
    "gpt_neox": ("gpt_neox", {"intermediate_size": 128}),
    "gpt_neox serial": ("gpt_neox", {"intermediate_size": 128, "use_parallel_residual": False}),
    "falcon": ("falcon", {"multi_query": True, "new_decoder_architecture": False, "alibi": False}),
    "falcon 40b": (
        "falcon",
        {"num_kv_heads": 2, "new_decoder_architecture": True, "alibi": False},
    ),
    "gpt2": ("gpt2", {}),
    "phi": ("phi", {"intermediate_size": 256, "partial_rotary_factor": 0.5}),
    "phi3": ("phi3", {**GROUPED, "sliding_window": None}),
}  # fmt: skip


def build_family(name: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A tiny model with weights large enough that its answers differ, norms and biases too."""
    kind, options = FAMILIES[name]
    config = AutoConfig.for_model(kind, **{**SIZES, **options, **overrides})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
        else:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model


def byte_tokenizer(split: Any = WORDS, size: int = 512) -> PreTrainedTokenizerFast:
    """Byte-level BPE with merges, trained here."""
    return _wrap(Tokenizer.from_str(_byte_core(split, size)))


@cache
def _byte_core(split: Any, size: int) -> str:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = split
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        TEXT * 3,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=SPECIALS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return core.to_str()


def piece_tokenizer(prefix: bool = False, size: int = 512) -> PreTrainedTokenizerFast:
    """SentencePiece-like BPE with byte pieces, trained here; <unk>, <s>, </s> come first."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    steps: list[Any] = [normalizers.Replace(" ", "▁")]
    if prefix:
        steps.insert(0, normalizers.Prepend("▁"))
    core.normalizer = normalizers.Sequence(steps)
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    pieces = [f"<0x{i:02X}>" for i in range(256)]
    # Whole lines make merges across words, which SentencePiece does not have: learn on words.
    words = pre_tokenizers.Split(Regex("▁*[^▁]+"), "isolated")
    core.pre_tokenizer = words
    core.train_from_iterator(
        TEXT * 3,
        trainers.BpeTrainer(
            vocab_size=size, special_tokens=["<unk>", "<s>", "</s>", *pieces], show_progress=False
        ),
    )
    vocabulary = core.get_vocab()
    # As SentencePiece has it: every pair whose joint is a piece may merge, the earlier piece first.
    merges = generate_merges(vocabulary, {piece: -i for piece, i in vocabulary.items()})
    core.model = models.BPE(
        vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True
    )
    core.pre_tokenizer = None  # type: ignore[assignment]
    return _wrap(core, ("<s>", "</s>"), template=None)


def _wrap(
    core: Tokenizer,
    ends: tuple[str, str] = ("<|im_start|>", "<|im_end|>"),
    template: str | None = CHATML,
) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=ends[0],
        eos_token=ends[1],
        pad_token=ends[1],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer


def write_family(
    folder: Path, name: str = "llama", tokenizer: Any = None, **overrides: Any
) -> Path:
    """A model folder of that family on disk."""
    build_family(name, **overrides).save_pretrained(folder)
    (tokenizer or byte_tokenizer()).save_pretrained(folder)
    return folder
