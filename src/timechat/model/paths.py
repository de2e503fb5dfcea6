"""The way a model reads many rows: packed, masked or padded, whichever is exact for its family.

`packed` goes through the replaceable attention of transformers and is the fastest. `masked` hands
one mask over all flat tokens to families whose attention is their own but takes a mask (Falcon).
`padded` lays whole rows side by side, padding behind them, where no token can see it: slower, and
right for every causal model (ALiBi, fused kernels, whatever comes). Each model is tried on two
short rows before its first use, and takes the first way that answers as the rows alone do.

Axes: T flat tokens, N rows, L longest row, P shared prefix, D hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator
from contextlib import contextmanager
from enum import Enum
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from timechat.errors import ModelError
from timechat.model.attention import packed
from timechat.model.layout import Layout, plan_layout


class Path(Enum):
    """A way of reading rows, with what it means for speed."""

    PACKED = "packed: no padding, a shared opening computed once"
    MASKED = "one mask over all rows: no padding, a shared opening computed once, more attention"
    PADDED = "rows side by side with padding, a shared opening computed for each: slower, exact"


# Largest relative difference between a row in company and the row alone, in the model's format.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.06, torch.float16: 0.01}
# The trial's rows: a shared opening, and endings of like and unlike length.
_OPENING, _ENDINGS = 6, (3, 8, 5, 8)
# Families that carry a state from token to token instead of attending, and what their layers are
# called in a configuration.
_RECURRENT = ("mamba", "rwkv", "recurrent", "linear_attention", "conv", "xlstm", "ssm")

_found: WeakKeyDictionary[nn.Module, Path] = WeakKeyDictionary()


def read(model: PreTrainedModel, ids: Tensor, layout: Layout) -> Tensor:
    """Final hidden states (T, D) of flat `ids` (1, T), each row as if it were alone.

    Raises ModelError for a token that the model has no embedding of.
    """
    refuse_unknown(model, int(ids.max()))
    limit, longest = row_limit(model.config.get_text_config()), int(layout.positions.max()) + 1
    if limit is not None and longest > limit and len(layout.positions) > longest:
        raise ModelError(
            f"a row of {longest} tokens in company: beyond {limit} this model's positions turn "
            "otherwise for every row that is read along; set train.max_length to at most that"
        )
    return _READERS[path_of(model)](model, ids.to(model.device), layout)


def refuse_unknown(model: PreTrainedModel, token: int) -> None:
    """Raise ModelError for a token that the model has no embedding of."""
    size = _num_embeddings(model)
    if token >= size:
        raise ModelError(
            f"token {token} has no embedding: the model knows {size} tokens, so this tokenizer is "
            "another model's or was given more"
        )


def path_of(model: PreTrainedModel) -> Path:
    """The model's way, tried once. Raises ModelError when there is none, with the reason."""
    if model not in _found:
        _found[model] = _choose(model)
    return _found[model]


def row_limit(config: Any) -> int | None:
    """The longest row that leaves others as they are; None where any does.

    Positions that are scaled dynamically, or by one of two sets of factors (Phi-3's long contexts),
    turn by the longest row of a pass, so beyond its original window a row changes its company.
    """
    rope = cast("dict[str, Any]", getattr(config, "rope_parameters", None) or {})
    kinds = [rope] if "rope_type" in rope else [r for r in rope.values() if isinstance(r, dict)]
    limits: list[int] = []
    for kind in cast("list[dict[str, Any]]", kinds):
        if "dynamic" in str(kind.get("rope_type")):
            limits.append(int(config.max_position_embeddings))
        elif kind.get("rope_type") == "longrope":
            limits.append(int(kind["original_max_position_embeddings"]))
    return min(limits, default=None)


def refuse_recurrent(config: Any) -> None:
    """Raise ModelError for a model that does not attend: its state cannot be kept apart."""
    kinds = {str(kind) for kind in getattr(config, "layer_types", None) or ()}
    kinds.add(str(config.model_type))
    strange = sorted(kind for kind in kinds if any(part in kind for part in _RECURRENT))
    if strange:
        raise ModelError(
            f"{config.model_type} is recurrent ({', '.join(strange)}): it carries a state from "
            "token to token, which answering many prompts side by side and comparing their "
            "continuations cannot keep apart yet. Choose a model that attends"
        )


def _choose(model: PreTrainedModel) -> Path:
    refuse_recurrent(model.config.get_text_config())
    reasons: list[str] = []
    with _still(model), torch.no_grad():
        rows = _trial_rows(model)
        alone = [_trunk(model, row[None])[0] for row in rows]
        for path in Path:
            if path is Path.MASKED and _sees_locally(model):
                continue
            reason = _try(model, path, rows, alone)
            if not reason:
                return path
            reasons.append(f"{path.name.lower()}: {reason}")
    raise ModelError(
        f"{type(model).__name__} reads a row in company otherwise than alone ({'; '.join(reasons)})"
    )


def _num_embeddings(model: PreTrainedModel) -> int:
    return len(cast(Any, model.get_input_embeddings()).weight)


def _trial_rows(model: PreTrainedModel) -> list[Tensor]:
    size = _num_embeddings(model)
    generator = torch.Generator().manual_seed(0)
    draw = [
        torch.randint(0, size, (n,), generator=generator).to(model.device)
        for n in (_OPENING, *_ENDINGS)
    ]
    return [torch.cat([draw[0], ending]) for ending in draw[1:]]


def _try(model: PreTrainedModel, path: Path, rows: list[Tensor], alone: list[Tensor]) -> str:
    """Why `path` is not exact for `model`; empty when it is.

    Each row must come out as it does alone, and must not move at all when another one changes.
    """
    flat = torch.cat([rows[0][:_OPENING], *(row[_OPENING:] for row in rows)])[None]
    layout = plan_layout(_ENDINGS, _OPENING)
    changed = flat.clone()
    last = _ENDINGS[-1]
    changed[0, -last:] = changed[0, -last:].flip(0).roll(1)
    changed[0, -1] = (flat[0, -1] + 1) % int(flat.max().clamp_min(1))
    try:
        found, other = (_READERS[path](model, x, layout) for x in (flat, changed))
    except (ModelError, RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    expected = torch.cat([alone[0][:_OPENING], *(row[_OPENING:] for row in alone)])
    gap = float((found - expected).float().norm() / expected.float().norm().clamp_min(1e-9))
    if not gap <= TOLERANCE.get(model.dtype, 1e-4):
        return f"differs by {gap:.1e}"
    moved = float((found - other)[:-last].float().abs().max())
    # Experts are computed in groups whose size depends on the other rows, so they round otherwise.
    allowed = 0.0 if not _has_experts(model) else float(expected.float().abs().max()) * 0.05
    return f"a row moves by {moved:.1e} when another one changes" if moved > allowed else ""


def _read_packed(model: PreTrainedModel, ids: Tensor, layout: Layout) -> Tensor:
    with packed(model, layout):
        return _trunk(model, ids, torch.ones_like(ids), layout.positions)[0]


def _read_masked(model: PreTrainedModel, ids: Tensor, layout: Layout) -> Tensor:
    seen = torch.zeros(ids.shape[1], ids.shape[1], dtype=torch.bool)
    spans = [(0, layout.prefix, 0)] if layout.prefix else []
    for group in layout.groups:
        # By the segment's number: full segments follow on each other without a gap.
        counts = (group.inverse // group.length).bincount(minlength=group.num_segments)
        for where in group.where.split(counts.tolist()):
            spans.append((int(where[0]), len(where), group.prefix))
    for start, length, prefix in spans:
        own = slice(start, start + length)
        seen[own, own] = torch.ones(length, length, dtype=torch.bool).tril()
        seen[own, :prefix] = True
    return _trunk(model, ids, seen[None, None].to(ids.device), layout.positions)[0]


def _read_padded(model: PreTrainedModel, ids: Tensor, layout: Layout) -> Tensor:
    opening = ids[0, : layout.prefix]
    parts: list[Tensor] = []
    for group in layout.groups:
        shape = (group.num_segments, group.length)
        rows = ids[0].index_select(0, group.index.to(ids.device)).view(shape)
        if group.prefix:
            rows = torch.cat([opening.expand(shape[0], -1), rows], dim=1)
        found = _trunk(model, rows)
        if group.prefix and not parts:
            parts.append(found[0, : group.prefix])
        own = found[:, group.prefix :].flatten(0, 1)
        parts.append(own.index_select(0, group.inverse.to(ids.device)))
    return torch.cat(parts).index_select(0, layout.order.to(ids.device))


_READERS = {
    Path.PACKED: _read_packed,
    Path.MASKED: _read_masked,
    Path.PADDED: _read_padded,
}


def _trunk(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """Final hidden states (N, L, D). Raises ModelError when positions are not taken."""
    trunk = getattr(model, model.base_model_prefix, None)
    if not isinstance(trunk, nn.Module):
        raise ModelError(
            f"{type(model).__name__} has no part called {model.base_model_prefix!r}, where its "
            "layers should be: this family cannot be trained here"
        )
    options: dict[str, Any] = {"use_cache": False}
    if mask is not None:
        options["attention_mask"] = mask
    if positions is not None:
        if "position_ids" not in inspect.signature(trunk.forward).parameters:
            raise ModelError(f"{type(model).__name__} takes no positions")
        options["position_ids"] = positions[None].to(ids.device)
    return trunk(input_ids=ids, **options).last_hidden_state


def _sees_locally(model: PreTrainedModel) -> bool:
    """Whether some layers see a window only, which a mask of ours would widen."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    local = any(getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return bool(kinds - {"full_attention"}) or local


def _has_experts(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return any(getattr(config, name, None) for name in names)


@contextmanager
def _still(model: PreTrainedModel) -> Generator[None]:
    """The model without dropout, while the block runs."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
