"""The six promises, checked in every run: each a `Check` with its figure.

They run on the run's own model, rows and trainer, on samples where the whole would be dear.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from timechat.conversation import Conversation
from timechat.data.pack import Example, encode, pack
from timechat.export import gate, noise
from timechat.export.tolerance import tolerance_for
from timechat.export.weights import Weights
from timechat.model.adapt import adapters, merged
from timechat.model.load import Loaded, count_weights, load, resolve
from timechat.model.render import Renderer
from timechat.records import Check, DataCard, Measure
from timechat.store.files import sha256
from timechat.training.checkpoint import Identity, restore, save
from timechat.training.trainer import Trainer

SAMPLE = 500
# How far figures that are equal in exact arithmetic may lie apart in the run's number format.
GRADIENT_TOLERANCE = {torch.bfloat16: 0.05, torch.float32: 1e-4}
# Rows whose gradient is worked out in two ways.
GRADIENT_ROWS = 12
# Questions on which the merged weights are held against the adapter, and the weights (about 1.5 s
# of folding a billion for each answer) from which on there are fewer.
EXPORT_PROBES, LARGE_PROBES, LARGE = 32, 4, 2_000_000_000


def check_template(rows: Sequence[Conversation], renderer: Renderer, served: Renderer) -> Check:
    """What is trained is what is served; the stop token is learned; only answers carry loss."""
    rows = rows[:SAMPLE]
    same = stops = clean = carrying = tokens = 0
    for row in rows:
        example = encode(row, renderer)
        carrying += example.num_targets
        tokens += len(example.ids)
        prompt = served.prompt(row.question)
        served_alike = list(example.ids[: len(prompt)]) == prompt
        same += served_alike and list(example.ids) == renderer.whole(row.messages, False)
        trained = [t for t, w in zip(example.ids, example.weights, strict=True) if w > 0]
        stops += bool(trained) and trained[-1] in renderer.stop_ids
        clean += _texts(trained, renderer) == _answers(row)
    passed = same == stops == clean == len(rows)
    return Check(
        "template",
        passed,
        f"{same} of {len(rows)} rows are trained as they are served, {stops} end in the "
        f"stop token, {clean} carry loss on the answers alone "
        f"({carrying / max(1, tokens):.0%} of tokens)",
    )


def check_rows(card: DataCard, trained: int, held_out: int, dropped: int) -> Check:
    """Rows in = rows trained + rows dropped + rows held out."""
    closes = card.rows_in == trained + held_out + dropped
    return Check(
        "rows",
        closes,
        f"{card.rows_in} in = {trained} trained + {dropped} dropped + {held_out} held out",
    )


def check_gradient(trainer: Trainer, examples: Sequence[Example], micro_rows: int) -> Check:
    """The same rows in one micro-batch and in three give the same loss and gradient.

    Where memory allows only small micro-batches, of `micro_rows`, they are few and short rows.
    """
    rows = _within(list(examples[:GRADIENT_ROWS]), examples, micro_rows)
    one = _gradient(trainer, [rows])
    many = _gradient(trainer, [rows[i::3] for i in range(3) if rows[i::3]])
    loss_gap = abs(one[0] - many[0]) / max(abs(one[0]), 1e-9)
    gap = float((one[1] - many[1]).norm() / one[1].norm().clamp_min(1e-12))
    tolerance = GRADIENT_TOLERANCE[trainer.model.dtype]
    return Check(
        "gradient",
        loss_gap <= tolerance and gap <= tolerance,
        f"{len(rows)} rows in 1 and in 3 micro-batches: loss differs by {loss_gap:.1e}, gradient "
        f"by {gap:.1e} (rounding of {str(trainer.model.dtype).removeprefix('torch.')} allows "
        f"{tolerance:g})",
    )


def _within(rows: list[Example], examples: Sequence[Example], micro_rows: int) -> list[Example]:
    """`rows` without their longest, as many as have the tokens that a micro-batch may have."""
    sizes = [len(example.ids) for example in examples]
    most = max(max(sizes), micro_rows * sum(sizes) // len(sizes))
    ranked = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    ends = accumulate(len(rows[i].ids) for i in ranked)
    kept = {i for i, end in zip(ranked, ends, strict=True) if end <= most} | set(ranked[:2])
    return [row for i, row in enumerate(rows) if i in kept]


def check_resume(
    trainer: Trainer, loaded: Loaded, identity: Identity, examples: Sequence[Example]
) -> Check:
    """Two steps, a checkpoint, two more: equal to four without a stop, byte for byte.

    Leaves the trainer as it was before: call it before the first step.
    """
    steps = [(pack(examples[i : i + 2]),) for i in range(0, min(8, len(examples)), 2)]
    begin = [p.detach().clone() for p in trainer.parameters]
    half = len(steps) // 2
    with tempfile.TemporaryDirectory() as scratch:
        folder = trainer.ranks.tell(Path(scratch))
        for step in steps:
            trainer.advance(step)
        save(folder / "whole", trainer, loaded, identity, {})
        trainer.rewind(begin)
        for step in steps[:half]:
            trainer.advance(step)
        save(folder / "half", trainer, loaded, identity, {})
        trainer.rewind([torch.zeros_like(p) for p in begin])
        restore(folder / "half", trainer, identity)
        for step in steps[half:]:
            trainer.advance(step)
        save(folder / "resumed", trainer, loaded, identity, {})
        names = [p.relative_to(folder / "whole") for p in (folder / "whole").rglob("*.safetensors")]
        equal = [sha256(folder / "whole" / n) == sha256(folder / "resumed" / n) for n in names]
        trainer.ranks.wait()
    trainer.rewind(begin)
    return Check(
        "resume",
        all(equal),
        f"{half} steps + checkpoint + {len(steps) - half} steps against {len(steps)} steps: "
        f"weights and optimizer {'equal' if all(equal) else 'NOT equal'} byte for byte",
    )


def check_export(loaded: Loaded, examples: Sequence[Example], best: Path) -> Check:
    """The gate on what is handed on: an adapter folded into its base, or the folder `best` loaded
    again; held-out answers, and the model's own greedy ones."""
    is_large = count_weights(loaded.source.folder) > LARGE
    probes = [_probe(e) for e in examples[: LARGE_PROBES if is_large else EXPORT_PROBES]]
    lines = gate.hear(loaded.model, probes, loaded.renderer.stop_ids)
    if adapters(loaded.model):
        what = "merged weights against the adapter"
        # As the base's files have it, whatever it computes in.
        stored = Weights(loaded.source.folder).dtype
        with merged(loaded.model, lambda _, weight: weight.to(stored)):
            heard = gate.follow(loaded.model, lines, at_once=is_large)
        with merged(loaded.model, lambda name, w: noise.rough_in_bf16(name, w.to(stored))):
            rough = gate.follow(loaded.model, lines, at_once=is_large)
    else:
        what = "the saved model, loaded again, against what was evaluated"
        again = load(resolve(str(best))).model
        heard = gate.follow(again, lines)
        noise.roughen(again, noise.steps_of_bf16(again))
        rough = gate.follow(again, lines)
    verdict = gate.judge(lines, heard, tolerance_for(heard, rough))
    return Check("export", verdict.passed, f"{what}: {verdict.figure}")


def _probe(example: Example) -> gate.Probe:
    """A question of the task: what carries weight is the reference answer."""
    start = next(i for i, weight in enumerate(example.weights) if weight > 0)
    last = max(i for i, weight in enumerate(example.weights) if weight > 0)
    return gate.Probe(example.id, example.ids[:start], example.ids[start : last + 1])


def check_retention(
    measure: Measure, margin: float, num_general: int = 0, own: Measure | None = None
) -> Check:
    """`num_general` is how many general questions there are, where fewer were asked; `own` are the
    user's own questions, of which a loss fails the check too."""
    of = f"{measure.n:,} of {num_general:,}" if measure.n < num_general else f"{measure.n:,}"
    low, high = measure.ci95
    return Check(
        "retention",
        measure.verdict == "kept" and (own is None or own.verdict != "lost"),
        f"{measure.verdict}: {measure.before:.1%} to {measure.after:.1%} of {of} general "
        f"questions, {100 * measure.difference:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}], "
        f"margin {100 * margin:g}" + ("" if own is None else _tell_own(own)),
    )


def _tell_own(own: Measure) -> str:
    low, high = own.ci95
    return (
        f"; your own {own.n:,} questions {own.verdict}: {100 * own.difference:+.1f} points "
        f"[{100 * low:+.1f}, {100 * high:+.1f}]"
    )


def _texts(trained: list[int], renderer: Renderer) -> str:
    stops = renderer.stop_ids
    kept = [token for token in trained if token not in stops]
    return "".join(str(renderer.tokenizer.decode(kept)).split())


def _answers(row: Conversation) -> str:
    parts = [m.content for m in row.messages if m.role == "assistant" and m.weight > 0]
    return "".join("".join(parts).split())


def _gradient(trainer: Trainer, cuts: list[list[Example]]) -> tuple[float, Tensor]:
    batches = tuple(pack(rows) for rows in cuts)
    loss, _ = trainer.backward(batches)
    flat = torch.cat([p.grad.flatten() for p in trainer.parameters if p.grad is not None])
    trainer.optimizer.zero_grad(set_to_none=True)
    return loss, flat.clone()
