"""OpenAI's request bodies, as this server understands them.

Fields that only hint (`user`, `store`, …) may be there and do nothing; any other unknown field is
listed in the `x-ignored-fields` header of the answer. A field that would change the answer and is
not built is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from timechat.engine.protocol import Sampling
from timechat.serve.errors import ApiError
from timechat.serve.settings import Limits

# Parameters of OpenAI's that steer billing, storage or safety there, and nothing here.
HINTS = frozenset(
    {
        "metadata", "moderation", "parallel_tool_calls", "prompt_cache_key",
        "prompt_cache_options", "prompt_cache_retention", "reasoning_effort",
        "safety_identifier", "service_tier", "store", "user", "verbosity",
    }
)  # fmt: skip
# Parameters that would change the answer and are not built.
UNBUILT = ("audio", "functions", "function_call", "prediction", "web_search_options")

# Unknown fields that an answer's header names.
MOST_NAMED = 16

StopText = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Count = Annotated[int, Field(ge=1, le=1 << 20)]


class Body(BaseModel):
    """A JSON body; types are not coerced, extra fields are kept to be named."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())


class ToolFunction(Body):
    name: str
    arguments: str


class ToolCall(Body):
    id: str
    type: Literal["function"] = "function"
    function: ToolFunction


class Function(Body):
    name: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Body):
    type: Literal["function"]
    function: Function


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> ChatMessage:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("content is missing")
        return self


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Asked(Body):
    """What chat and plain completions share."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=4)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Count | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, float] | None = None

    @property
    def ignored(self) -> list[str]:
        """Fields that were sent and do nothing."""
        return sorted(name for name in self.model_extra or {} if name not in HINTS)

    @property
    def headers(self) -> dict[str, str]:
        """What the answer's headers say of the request: the fields that were left alone."""
        if not self.ignored:
            return {}
        shown = [_as_word(name) for name in self.ignored[:MOST_NAMED]]
        if len(self.ignored) > MOST_NAMED:
            shown.append(f"and {len(self.ignored) - MOST_NAMED} more")
        return {"x-ignored-fields": ", ".join(shown)}

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, seed: int) -> Sampling:
        """Temperature is 0 where none is given: what is served answers like what was evaluated."""
        return Sampling(
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=seed,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
        )

    @property
    def words(self) -> tuple[str, object]:
        """The field whose text the model reads, and what it holds."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises ApiError 400 for what would change the answer and cannot be done."""
        param, said = self.words
        if not _is_text(said):
            raise ApiError(400, "half of a surrogate pair is no text", param=param)
        extra = self.model_extra or {}
        for name in UNBUILT:
            if extra.get(name) is not None:
                raise ApiError(
                    400, f"{name} is not supported", param=name, code="unsupported_parameter"
                )
        if self.logit_bias:
            raise ApiError(
                400,
                "logit_bias is not supported",
                param="logit_bias",
                code="unsupported_parameter",
            )
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options needs stream: true", param="stream_options")


class ChatRequest(Asked):
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: dict[str, Any] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    truncation: Literal["auto", "disabled"] | None = None

    @property
    def words(self) -> tuple[str, object]:
        return "messages", [
            [message.content for message in self.messages],
            [tool.model_dump() for tool in self.tools or ()],
        ]

    @property
    def longest(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def wanted_tools(self) -> tuple[dict[str, Any], ...]:
        """The tools that the model is told of."""
        if self.tool_choice == "none":
            return ()
        return tuple(tool.model_dump(exclude_none=True) for tool in self.tools or ())

    @property
    def wanted_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def check(self) -> None:
        super().check()
        both = self.max_tokens is not None and self.max_completion_tokens is not None
        if both and self.max_tokens != self.max_completion_tokens:
            raise ApiError(
                400, "max_tokens and max_completion_tokens differ: give one", param="max_tokens"
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
        if self.tool_choice not in (None, "auto", "none"):
            raise ApiError(
                400,
                "no model here can be made to call a tool: tool_choice is auto or none",
                param="tool_choice",
                code="unsupported_value",
            )
        modalities = (self.model_extra or {}).get("modalities")
        if modalities not in (None, ["text"]):
            raise ApiError(400, "only text is answered", param="modalities")


class CompletionRequest(Asked):
    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=20)] | None = None
    suffix: str | None = None

    @property
    def words(self) -> tuple[str, object]:
        return "prompt", [one for one in self.prompts if isinstance(one, str)]

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [one for one in self.prompt if not isinstance(one, int)]

    def check(self) -> None:
        super().check()
        if self.echo or self.suffix or (self.best_of or 1) > (self.n or 1):
            name = "echo" if self.echo else "suffix" if self.suffix else "best_of"
            raise ApiError(
                400, f"{name} is not supported", param=name, code="unsupported_parameter"
            )
        if not 1 <= len(self.prompts) <= 16 or not all(self.prompts):
            raise ApiError(400, "give 1 to 16 prompts, none of them empty", param="prompt")


def _is_text(value: object) -> bool:
    """Whether all strings in a value can be written as UTF-8."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            if not one.isascii() and any("\ud800" <= letter <= "\udfff" for letter in one):
                return False
        elif isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            waiting += one
    return True


def _as_word(name: str) -> str:
    """A field's name, safe in a header whatever it holds."""
    return name[:64] if name.isascii() and name.isidentifier() else ascii(name[:64])


def schema_of(wanted: Mapping[str, Any] | None, limits: Limits) -> str | None:
    """The JSON schema that `response_format` asks for, as text; None for free text."""
    if wanted is None:
        return None
    kind = wanted.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return '{"type":"object"}'
    if kind != "json_schema":
        raise ApiError(
            400, f"response_format.type {kind!r} is not known", param="response_format.type"
        )
    named = wanted.get("json_schema")
    schema = named.get("schema") if isinstance(named, Mapping) else None
    if not isinstance(schema, dict):
        raise ApiError(
            400,
            "response_format.json_schema.schema must be an object",
            param="response_format.json_schema.schema",
        )
    text = json.dumps(schema)
    if len(text) > limits.schema_bytes or _depth(schema) > limits.schema_depth:
        raise ApiError(
            400,
            f"the schema is larger than {limits.schema_bytes} bytes or deeper than "
            f"{limits.schema_depth} levels",
            param="response_format.json_schema.schema",
        )
    return text


def _depth(value: Any) -> int:
    inner = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(inner, list):
        return 0
    return 1 + max(map(_depth, inner), default=0)
