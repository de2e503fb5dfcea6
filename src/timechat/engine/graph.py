"""A Llama-shaped model as an OpenVINO graph with 8- or 4-bit weights, for `openvino.py`.

Written from the safetensors directly: openvino-genai reads GGUF too, but with each projection on
its own and weights in groups of 32; here query, key and value are one product and so are gate and
up, which a model of this size spends its time on. Shapes that this file does not know are refused
by name, and the caller falls back to the torch engine.

Axes: B batch, S new tokens, T cached and new, H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import Node, Output
from openvino import opset13 as op
from openvino.op.util import Variable, VariableInfo

from timechat.engine.families import Bits, refusal
from timechat.errors import ModelError

Array = NDArray[Any]
# Weights that share a scale, as in GGUF's Q8_0 and Q4_1.
GROUP = 32


def build_graph(config: Any, weights: Mapping[str, Array], bits: Bits) -> ov.Model:
    """The graph of a causal model; `weights` are the state dict's, in fp32. Raises ModelError."""
    if reason := refusal(config):
        raise ModelError(reason)
    return _Builder(config, weights, bits).build()


class _Builder:
    def __init__(self, config: Any, weights: Mapping[str, Array], bits: Bits) -> None:
        self.config = config
        self.weights = weights
        self.bits: Bits = bits
        self.heads = int(config.num_attention_heads)
        self.kv_heads = int(config.num_key_value_heads)
        self.size = int(getattr(config, "head_dim", 0) or config.hidden_size // self.heads)
        self.sinks: list[Node] = []
        self.ids = _parameter("input_ids", [-1, -1], ov.Type.i64)
        self.mask = _parameter("attention_mask", [-1, -1], ov.Type.i64)
        self.positions = _parameter("position_ids", [-1, -1], ov.Type.i64)
        self.beams = _parameter("beam_idx", [-1], ov.Type.i32)
        self.batch = op.gather(op.shape_of(self.ids), _ints([0]), _ints([0]))

    def build(self) -> ov.Model:
        # The embedding keeps 8 bits, and is the head's matrix too where they are tied.
        table = self._compressed([self.weights["model.embed_tokens.weight"]], 8)
        x = op.gather(table, op.convert(self.ids, "i32"), op.constant(0, ov.Type.i32))
        self.cos, self.sin = self._rotary()
        self.causal = self._causal_mask()
        for layer in range(int(self.config.num_hidden_layers)):
            x = self._layer(x, layer)
        x = self._norm(x, "model.norm.weight")
        if not self.config.tie_word_embeddings:
            table = self._compressed([self.weights["lm_head.weight"]], 8)
        logits = op.matmul(x, table, False, True)
        result = op.result(logits)
        result.get_output_tensor(0).set_names({"logits"})
        inputs = [self.ids, self.mask, self.positions, self.beams]
        return cast(Any, ov.Model)([result], self.sinks, inputs, "timechat")

    def _layer(self, x: Any, layer: int) -> Node:
        at = f"model.layers.{layer}."
        x = op.add(x, self._attend(self._norm(x, at + "input_layernorm.weight"), layer))
        inside = self._norm(x, at + "post_attention_layernorm.weight")
        names = [at + "mlp.gate_proj", at + "mlp.up_proj"]
        gate, up = self._split(self._project(inside, names), [self.config.intermediate_size] * 2)
        down = self._project(op.multiply(op.swish(gate), up), [at + "mlp.down_proj"])
        return op.add(x, down)

    def _attend(self, x: Node, layer: int) -> Node:
        at = f"model.layers.{layer}.self_attn."
        names = [at + f"{name}_proj" for name in "qkv"]
        widths = [n * self.size for n in (self.heads, self.kv_heads, self.kv_heads)]
        query, key, value = self._split(self._project(x, names), widths)
        query = self._rotate(self._by_head(query, self.heads))
        key = self._cache(self._rotate(self._by_head(key, self.kv_heads)), layer, "key")
        value = self._cache(self._by_head(value, self.kv_heads), layer, "value")
        said = op.scaled_dot_product_attention(
            query, self._shared(key), self._shared(value), self.causal
        )
        flat = op.reshape(
            op.transpose(said, _ints([0, 2, 1, 3])), _ints([0, 0, self.heads * self.size]), True
        )
        return self._project(flat, [at + "o_proj"])

    def _project(self, x: Any, names: list[str]) -> Node:
        """One product for all of `names`, side by side."""
        matrix = self._compressed([self.weights[n + ".weight"] for n in names], self.bits)
        out = op.matmul(x, matrix, False, True)
        if names[0] + ".bias" in self.weights:
            bias = np.concatenate([self.weights[n + ".bias"] for n in names])
            out = op.add(out, op.constant(bias[None, None].astype(np.float32)))
        return out

    def _split(self, x: Node, widths: list[int]) -> list[Output]:
        return op.variadic_split(x, _ints(-1), _ints(widths)).outputs()

    def _by_head(self, x: Any, heads: int) -> Node:
        """[B, S, H·D] to [B, H, S, D]."""
        return op.transpose(
            op.reshape(x, _ints([0, 0, heads, self.size]), True), _ints([0, 2, 1, 3])
        )

    def _rotary(self) -> tuple[Node, Node]:
        """Cosines and sines of the positions, [B, 1, S, D]."""
        rope = getattr(self.config, "rope_parameters", None) or {}
        theta = float(rope.get("rope_theta", getattr(self.config, "rope_theta", 10_000.0)))
        steps = np.arange(0, self.size, 2, dtype=np.float64) / self.size
        frequencies = (theta**-steps).astype(np.float32)[None, :, None]
        shape = op.concat([self.batch, _ints([1]), _ints([1])], 0)
        spread = op.broadcast(op.constant(frequencies), shape, broadcast_spec="BIDIRECTIONAL")
        places = op.convert(op.unsqueeze(self.positions, _ints(1)), "f32")
        angles = op.transpose(op.matmul(spread, places, False, False), _ints([0, 2, 1]))
        both = op.concat([angles, angles], -1)
        return op.unsqueeze(op.cos(both), _ints(1)), op.unsqueeze(op.sin(both), _ints(1))

    def _rotate(self, x: Node) -> Node:
        half, end, step, axis = (_ints([v]) for v in (self.size // 2, 2**63 - 1, 1, 3))
        low = op.slice(x, _ints([0]), half, step, axis)
        high = op.slice(x, half, end, step, axis)
        turned = op.concat([op.multiply(high, _floats(-1.0, 4)), low], -1)
        return op.add(op.multiply(x, self.cos), op.multiply(turned, self.sin))

    def _cache(self, new: Node, layer: int, kind: str) -> Node:
        """Old and new keys or values; continuous batching turns this into pages."""
        name = f"past_key_values.{layer}.{kind}present.{layer}.{kind}"
        info = VariableInfo()
        info.data_shape = ov.PartialShape([-1, self.kv_heads, -1, self.size])
        info.data_type = ov.Type.f32
        info.variable_id = name
        variable = Variable(info)
        parts = [self.batch, _ints([self.kv_heads]), _ints([0]), _ints([self.size])]
        empty = op.broadcast(op.constant(np.float32(0)), op.concat(parts, 0))
        old = op.gather(op.read_value(empty, variable), self.beams, op.constant(0, ov.Type.i64))
        both = op.concat([old, new], 2)
        self.sinks.append(op.assign(both, variable))
        return both

    def _shared(self, x: Node) -> Node:
        """Each key head for all query heads that share it."""
        if self.heads == self.kv_heads:
            return x
        share = self.heads // self.kv_heads
        parts = [self.batch, _ints([self.kv_heads]), _ints([share]), _ints([0]), _ints([self.size])]
        # A length of 0 keeps the cache's own under two-way broadcasting.
        spread = op.broadcast(
            op.unsqueeze(x, _ints(2)), op.concat(parts, 0), broadcast_spec="BIDIRECTIONAL"
        )
        return op.reshape(spread, _ints([0, self.heads, -1, self.size]), True)

    def _causal_mask(self) -> Node:
        """[1, 1, S, T]: minus infinity where a key is later than the query."""
        # From the sizes and not from `position_ids`: continuous batching recognises those by what
        # they flow into.
        total = op.gather(op.shape_of(self.mask), _ints(1), _ints(0))
        new = op.gather(op.shape_of(self.ids), _ints(1), _ints(0))
        keys = op.range(_ints(0), total, _ints(1), "i64")
        queries = op.range(op.subtract(total, new), total, _ints(1), "i64")
        later = op.greater(keys, op.unsqueeze(queries, _ints(1)))
        blocked = op.select(later, op.constant(np.float32(-np.inf)), op.constant(np.float32(0)))
        return op.unsqueeze(blocked, _ints([0, 1]))

    def _norm(self, x: Any, name: str) -> Node:
        square = op.reduce_mean(op.power(x, _floats(2.0, 3)), op.constant([-1], ov.Type.i32), True)
        root = op.sqrt(op.add(square, _floats(self.config.rms_norm_eps, 3)))
        unit = op.multiply(op.divide(_floats(1.0, 3), root), x)
        return op.multiply(unit, op.constant(self.weights[name][None, None].astype(np.float32)))

    def _compressed(self, matrices: list[Array], bits: int) -> Node:
        """Rows of all matrices, stored in `bits` with a scale a group."""
        matrix = np.concatenate(matrices, 0).astype(np.float32)
        return _eight(matrix) if bits == 8 else _four(matrix, GROUP)


def _eight(matrix: Array) -> Node:
    """Signed bytes, a scale a group (a row where it does not part into groups)."""
    rows, width = matrix.shape
    group = GROUP if width % GROUP == 0 else width
    parts = matrix.reshape(rows, width // group, group)
    scale = np.maximum(np.abs(parts).max(-1, keepdims=True) / 127, 1e-7).astype(np.float16)
    whole = np.clip(np.rint(parts / scale.astype(np.float32)), -127, 127).astype(np.int8)
    scaled = op.multiply(op.convert(op.constant(whole), "f16"), op.constant(scale))
    return op.convert(op.reshape(scaled, _ints([rows, width]), False), "f32")


def _four(matrix: Array, group: int) -> Node:
    """Unsigned nibbles with a zero point, a scale a group."""
    rows, width = matrix.shape
    if width % group:
        raise ModelError(f"rows of {width} weights do not part into groups of {group}")
    parts = matrix.reshape(rows, width // group, group)
    low, high = parts.min(-1, keepdims=True), parts.max(-1, keepdims=True)
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scale = np.maximum((high - low) / 15, 1e-7).astype(np.float16)
    wide_scale = scale.astype(np.float32)
    zero = np.clip(np.rint(-low / wide_scale), 0, 15)
    whole = np.clip(np.rint(parts / wide_scale) + zero, 0, 15).astype(np.uint8)
    stored = op.convert(_nibbles(whole), "f16")
    shifted = op.subtract(stored, op.convert(_nibbles(zero.astype(np.uint8)), "f16"))
    scaled = op.multiply(shifted, op.constant(scale))
    return op.convert(op.reshape(scaled, _ints([rows, width]), False), "f32")


def _nibbles(values: Array) -> Node:
    """A constant of 4-bit numbers: two in a byte, the first one low."""
    flat = values.reshape(-1)
    packed = (flat[0::2] | (flat[1::2] << 4)).astype(np.uint8)
    tensor = ov.Tensor(packed, list(values.shape), ov.Type.u4)
    return op.constant(tensor, shared_memory=False)


def _parameter(name: str, shape: list[int], kind: ov.Type) -> Node:
    node = op.parameter(shape, kind)
    node.set_friendly_name(name)  # continuous batching finds its inputs by this name
    node.get_output_tensor(0).set_names({name})
    return node


def _ints(values: int | list[int]) -> Node:
    return op.constant(np.array(values, dtype=np.int64))


def _floats(value: float, rank: int) -> Node:
    return op.constant(np.full([1] * rank, value, dtype=np.float32))
