"""Tools in training lines, as the OpenAI API writes them. Knows no chat template.

{"messages": [..., {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function",
                    "function": {"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}}]},
              {"role": "tool", "tool_call_id": "c1", "content": "sun"}, ...],
 "tools": [{"type": "function", "function": {"name": "weather", "parameters": {...}}}]}
"""

from collections.abc import Iterator, Mapping, Sequence

from adapters_store.outside_values import BadJson, read_json
from server.jobs.files.line_values import (
    BadLine,
    Record,
    empty,
    encodable,
    kind_of,
    shown,
    unknown,
)

MAX_TOOLS = 128


def tools_of(line: Mapping[str, object]) -> list[Record]:
    """The tools of a line. `functions` is their older form, without what is around each."""
    tools, functions = line.get("tools"), line.get("functions")
    if empty(functions):
        return [] if empty(tools) else _read_tools(tools)
    if not empty(tools):
        raise BadLine("has 'tools' and 'functions', which is the older name; keep one of them")
    if not isinstance(functions, list):
        raise BadLine(f"'functions' is a JSON {kind_of(functions)} where a list is needed")
    return _read_tools([{"type": "function", "function": it} for it in functions])


def _read_tools(value: object) -> list[Record]:
    """Checked as far as chat templates read them."""
    if not isinstance(value, list) or not 0 < len(value) <= MAX_TOOLS:
        raise BadLine(f"'tools' is not a list of 1 to {MAX_TOOLS}; leave it out if there are none")
    for index, tool in enumerate(value):
        where = f"tools[{index}]"
        function = _function(tool, where)
        if not isinstance(function.get("parameters") or {}, dict):
            raise BadLine(f"{where}.function.parameters is not a JSON schema, an object")
    encodable(value, "tools")
    return value


def read_calls(value: object, where: str) -> list[Record]:
    """An assistant's calls, with their arguments parsed: templates write them in their own form."""
    if not isinstance(value, list):
        raise BadLine(f"{where}.tool_calls is a JSON {kind_of(value)} where a list is needed")
    encodable(value, f"{where}.tool_calls")
    return [_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(value)]


def unknown_in_calls(calls: object, where: str) -> Iterator[str]:
    """Where calls have keys that ask for something and are not known."""
    for index, call in enumerate(calls if isinstance(calls, list) else ()):
        if isinstance(call, dict):  # an `index` numbers the calls of a stream
            place = f"{where}tool_calls[{index}]."
            yield from unknown(call, ("id", "type", "function", "index"), place)
            if isinstance(call.get("function"), dict):
                yield from unknown(call["function"], ("name", "arguments"), f"{place}function.")


def check_answers(messages: Sequence[Record]) -> None:
    """Each tool's answer must be to a call just before it, and each call must be answered."""
    open_calls: set[object] = set()
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if message["role"] == "tool":
            answered = message.get("tool_call_id")
            if answered is not None and answered not in open_calls:
                raise BadLine(f"{where}.tool_call_id {shown(answered)} answers no call before it")
            open_calls.discard(answered)
            continue
        if open_calls:
            waiting = ", ".join(sorted(map(str, open_calls)))[:80]
            raise BadLine(f"{where} comes before the answer to tool call {waiting}")
        calls = message.get("tool_calls")
        open_calls = {call["id"] for call in calls} if isinstance(calls, list) else set()


def _call(value: object, where: str) -> Record:
    function = _function(value, where)
    assert isinstance(value, dict)
    if not isinstance(value.get("id"), str):
        raise BadLine(f"{where}.id is {shown(value.get('id'))}; the tool's answer must name it")
    arguments = function.get("arguments") or {}  # models write "" if a function has none
    try:
        read = arguments
        if isinstance(arguments, str):
            read = read_json(arguments.encode(), unique_keys=True)
    except BadJson as error:
        raise BadLine(f"{where}.function.arguments {error}") from error
    if not isinstance(read, dict):
        raise BadLine(f"{where}.function.arguments is a JSON {kind_of(read)}, not an object")
    name = function["name"]
    return {"id": value["id"], "type": "function", "function": {"name": name, "arguments": read}}


def _function(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict) or (value.get("type") or "function") != "function":
        raise BadLine(f"{where} is not of type 'function', the only one that is known")
    function = value.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadLine(f"{where}.function has no name")
    return function
