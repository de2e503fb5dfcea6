"""Tool calls as text: `<tool_call>` and `<tool_response>`, the form that Hermes and Qwen are in.

Every chat template can carry it, so a model of any family learns to call: the tools stand in the
system turn, a call is an assistant's words, and what came back is a user's turn.
"""

from __future__ import annotations

import json
from typing import Any, cast

from timechat.data.items import BadRowError, kind, short, writable

_SYSTEM = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def system_text(system: str, tools: object) -> str:
    """The system prompt with the tools in it. Raises BadRowError when they are no list."""
    listed = _loaded(tools) if isinstance(tools, str) else tools
    if not isinstance(listed, list):
        raise BadRowError("bad_tools", f"tools is {kind(listed)}; a list of functions")
    if not listed:
        return system
    lines = "\n".join(_dump(tool) for tool in cast(list[Any], listed))
    return (system.rstrip() + "\n\n" if system.strip() else "") + _SYSTEM.format(tools=lines)


def calls_text(calls: object, where: str) -> str:
    """An assistant's calls. Raises BadRowError for one without a function's name."""
    each = cast(list[object], calls) if isinstance(calls, list) else [calls]
    return "\n".join(_call(call, where) for call in each)


def response_text(content: str) -> str:
    return f"<tool_response>\n{content}\n</tool_response>"


def _call(call: object, where: str) -> str:
    found: Any = _loaded(call) if isinstance(call, str) else call
    if isinstance(found, dict) and isinstance(inner := cast(Any, found).get("function"), dict):
        found = inner
    name = cast(dict[str, Any], found).get("name") if isinstance(found, dict) else None
    if not isinstance(name, str) or not name.strip():
        raise BadRowError("tool_call", f"{where}: a call without a function's name: {short(call)}")
    arguments: Any = found.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _loaded(arguments) if arguments.strip() else {}
    return f"<tool_call>\n{_dump({'name': name, 'arguments': arguments})}\n</tool_call>"


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadRowError("tool_call", f"{short(text)} is not JSON") from None


def _dump(value: object) -> str:
    return writable(json.dumps(value, ensure_ascii=False), "a tool call")
