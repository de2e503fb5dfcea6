"""How far an export may lie from what was evaluated, by its format.

The argument: a format rounds every weight by a share of its block's size, the errors are
independent, and a log-probability moves with their size; arithmetic in bf16 adds a part of its
own. By how much depends on the model, and was measured on two that differ in size and training
(LAB.md has the table). The bounds are about twice the larger figure, so that a right export passes;
one with a wrong setting or tensor is off by whole nats, and each value is checked by itself before.
"""

from __future__ import annotations

import torch

from timechat.export.gate import Tolerance

# Mean change of a token's log-probability (nats) and the preference (nats) that may be lost.
_FORMATS: dict[str, Tolerance] = {
    "adapter": Tolerance(1e-4, 1e-3),
    "merged": Tolerance(0.03, 0.25),
    "f32": Tolerance(0.003, 0.03),
    "f16": Tolerance(0.01, 0.1),
    "bf16": Tolerance(0.03, 0.25),
    "q8_0": Tolerance(0.1, 1.0),
    "q5_1": Tolerance(0.9, 4.0),
    "q5_0": Tolerance(0.9, 4.0),
    "q4_1": Tolerance(1.1, 5.0),
    "q4_0": Tolerance(1.1, 5.0),
}
# What arithmetic in bf16 adds between two ways of computing the same.
_BF16_ARITHMETIC = Tolerance(0.05, 0.4)


def tolerance_of(form: str, dtype: torch.dtype, rounded: bool = False, bits: int = 0) -> Tolerance:
    """The tolerance of a format (`adapter`, `merged`, or a GGUF quantisation) when both models
    are heard in `dtype`.

    `rounded` says that the evaluated model held in bf16 what its files hold in fp32, so that an
    export from the files differs by that much too; `bits`, that its base was in 8 or 4 bits while
    the export's is whole.
    """
    parts = [_FORMATS[form]]
    if rounded:
        parts.append(_FORMATS["bf16"])
    if bits:
        parts.append(_FORMATS["q8_0" if bits == 8 else "q4_0"])
    if dtype != torch.float32:
        parts.append(_BF16_ARITHMETIC)
    return Tolerance(sum(part.gap for part in parts), sum(part.margin for part in parts))
