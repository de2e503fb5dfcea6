"""Chat templates are programs of strangers: run in a sandbox, with limits on time and size.

The language is the one transformers gives templates (Jinja with loop controls, `raise_exception`,
`strftime_now`, `tojson`, `generation` blocks), so that what is rendered here is what plain
transformers renders; that it is, the tests hold. Where messages stand and which of their tokens
carry loss is `render`'s business.

A loop counts its turns and looks at the clock, whatever multiplies or pads text is asked for its
size beforehand, and the output is counted as it comes.
"""

from __future__ import annotations

import functools
import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence, Sized
from contextvars import ContextVar
from datetime import datetime
from typing import Any, cast

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from timechat.errors import ModelError

MAX_SECONDS = 5.0
MAX_TURNS = 200_000
# Characters of one value, and of the output beyond what the messages themselves hold.
MAX_TEXT = 2_000_000
MAX_SOURCE = 500_000
# The largest number a template may hand to a filter or a method: widths and counts.
MAX_NUMBER = 100_000
_WIDTH = re.compile(r"\d{5,}")
# Methods and filters that make text longer: by a number, by a form, by a product of lengths.
_PADDING = frozenset(
    {"center", "ljust", "rjust", "zfill", "expandtabs", "indent", "wordwrap", "batch", "slice"}
    | {"tojson"}
)
_FORMATTING = frozenset({"format", "format_map"})
_MULTIPLYING = frozenset({"replace", "join", "translate"})


class _TooMuchError(TemplateError):
    """A limit was passed."""


class _Budget:
    """What one rendering may still spend."""

    def __init__(self) -> None:
        self.turns = MAX_TURNS
        self.ends = time.monotonic() + MAX_SECONDS


_budget: ContextVar[_Budget] = ContextVar("budget")


class Template:
    """A compiled chat template. Raises ModelError where it cannot be one."""

    def __init__(self, source: str, specials: Mapping[str, Any]) -> None:
        if len(source) > MAX_SOURCE:
            raise ModelError(
                f"the chat template has {len(source):,} characters; at most {MAX_SOURCE:,} are read"
            )
        self._specials = dict(specials)
        try:
            self._program = _Environment().from_string(source)
        except (TemplateError, RecursionError) as error:
            raise ModelError(f"the chat template is no valid template: {error}") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        generation: bool,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """The text of `messages`, opened for an answer when `generation`, with `tools` in it.

        Raises ModelError when the template refuses them, fails, or passes a limit.
        """
        given = sum(len(m["content"]) for m in messages) + (len(_to_json(tools)) if tools else 0)
        room = MAX_TEXT + 4 * given
        parts: list[str] = []
        token = _budget.set(_Budget())
        try:
            for part in self._program.generate(
                **self._specials,
                messages=[dict(m) for m in messages],
                tools=list(tools) or None,
                documents=None,
                add_generation_prompt=generation,
            ):
                parts.append(part)
                room -= len(part)
                if room < 0:
                    raise _TooMuchError("its output has no end")
        except _TooMuchError as error:
            raise ModelError(f"the chat template was stopped: {error}") from None
        except TemplateError as error:
            raise ModelError(f"the chat template refuses this conversation: {error}") from None
        except Exception as error:
            # A template is a program of a stranger: whatever it raises is its fault, not ours.
            raise ModelError(
                f"the chat template fails: {type(error).__name__}: {str(error)[:200]}"
            ) from None
        finally:
            _budget.reset(token)
        return "".join(parts)


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks assistant text; here it is only text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        self.filters = {name: _limited(name, run) for name, run in self.filters.items()}
        self.filters["tojson"] = _limited("tojson", _to_json)
        ours: dict[str, Any] = {"raise_exception": _raise, "strftime_now": _now}
        cast(dict[str, Any], self.globals).update(ours)

    def tick(self) -> str:
        """Count one turn of a loop."""
        budget = _budget.get()
        budget.turns -= 1
        if budget.turns < 0:
            raise _TooMuchError(f"more than {MAX_TURNS:,} turns of its loops")
        if budget.turns % 64 == 0 and time.monotonic() > budget.ends:
            raise _TooMuchError(f"not done after {MAX_SECONDS:g} s")
        return ""

    def joined(self, *parts: Any) -> str:
        """The operator `~`."""
        texts = [str(part) for part in parts]
        _refuse_size(sum(map(len, texts)))
        return "".join(texts)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for node in tree.find_all((nodes.For, nodes.Macro)):
            body = cast(Any, node).body
            body.insert(0, nodes.Output([_call("tick", [], node.lineno)]).set_lineno(node.lineno))
        _replace_joins(tree)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, Sized) and isinstance(times, int):
                    _refuse_size(len(many) * times)
        if operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            _refuse_size(len(left) + len(right))
        if operator == "%" and isinstance(left, str):
            _refuse_width(left)
        if operator == "**" or (isinstance(left, int) and left.bit_length() > 4096):
            _refuse_size(abs(right) if isinstance(right, int) else 0, 4096)
            _refuse_size(left.bit_length() if isinstance(left, int) else 0, 4096)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        # Jinja wraps `str.format` to look after the attributes it reads.
        owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
        if isinstance(owner, str):
            _refuse_arguments(getattr(obj, "__name__", ""), [owner, *args, *kwargs.values()])
        return super().call(context, obj, *args, **kwargs)


def _call(method: str, arguments: list[nodes.Expr], line: int) -> nodes.Expr:
    """A call of the environment's own method, which no template can put another in place of."""
    call = nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None)
    call.set_lineno(line)
    return call


def _replace_joins(node: nodes.Node) -> None:
    """Put the counted form of `~` in place of every one below `node`."""
    for field, value in list(node.iter_fields()):
        if isinstance(value, nodes.Node):
            setattr(node, field, _counted(value))
        elif isinstance(value, list):
            setattr(node, field, [_counted(v) if isinstance(v, nodes.Node) else v for v in value])


def _counted(node: nodes.Node) -> nodes.Node:
    _replace_joins(node)
    return _call("joined", node.nodes, node.lineno) if isinstance(node, nodes.Concat) else node


def _limited(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """`run` with its arguments looked at first; what Jinja marks it with stays on it."""

    @functools.wraps(run)
    def limited(*args: Any, **kwargs: Any) -> Any:
        _refuse_arguments(name, [*args, *kwargs.values()])
        return run(*args, **kwargs)

    return limited


def _refuse_arguments(name: str, values: Sequence[Any]) -> None:
    """Raise where the method or filter `name` would make far more of `values` than they are."""
    if name in _PADDING and any(isinstance(v, int) and abs(v) > MAX_NUMBER for v in values):
        raise _TooMuchError(f"{name} by more than {MAX_NUMBER:,}")
    if name in _FORMATTING:
        for value in values[:1]:
            _refuse_width(str(value))
    if name in _MULTIPLYING:
        sizes = [len(v) for v in values if isinstance(v, str | list | tuple)]
        _refuse_size(math.prod(max(1, size) for size in sizes), 100 * MAX_TEXT)


def _refuse_width(text: str) -> None:
    if _WIDTH.search(text):
        raise _TooMuchError(f"a width in {text[:40]!r}")


def _refuse_size(size: int, most: int = 10 * MAX_TEXT) -> None:
    if size > most:
        raise _TooMuchError(f"a value of size {size:,}")


def _raise(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own escapes HTML; transformers gives templates this one."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
