"""Read the messages of a training line as the OpenAI API and its SDKs write them. Knows no file.

Older forms become the present ones: `developer` is the system, a `function_call` a tool's call, and
a `function` the tool that answers it. Fields without a value are left out.
"""

from collections.abc import Iterator, Mapping, Sequence

from server.jobs.files.line_values import (
    BadLine,
    Record,
    empty,
    kind_of,
    shown,
    text,
    unknown,
    written,
)
from server.jobs.files.tool_calls import check_answers, read_calls, unknown_in_calls

MAX_MESSAGES = 512
_EVERY = ("role", "content", "name", "weight")
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "system": _EVERY,
    "developer": _EVERY,
    "user": _EVERY,
    "assistant": (*_EVERY, "tool_calls", "function_call", "reasoning_content"),
    "tool": (*_EVERY, "tool_call_id"),
    "function": _EVERY,
}
_ROLES = {"developer": "system", "function": "tool"}  # under which templates know them


def unknown_in_messages(messages: object) -> Iterator[str]:
    """Where messages have fields that ask for something and are not known."""
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        role = message.get("role") if isinstance(message, dict) else None
        if isinstance(role, str) and role in _FIELDS:
            where = f"messages[{index}]."
            yield from unknown(message, _FIELDS[role], where)
            yield from unknown_in_calls(message.get("tool_calls"), where)


def read_messages(value: object) -> list[Record]:
    """The messages in any order of roles that a request may have, the last an assistant's.

    An assistant's message that begins the chat gets the weight 0: no request asks for it.
    """
    if not isinstance(value, list) or not value:
        raise BadLine("'messages' is not a list with something in it")
    if len(value) > MAX_MESSAGES:
        raise BadLine(f"{len(value)} messages; at most {MAX_MESSAGES} are allowed")
    messages: list[dict[str, object]] = []
    for index, item in enumerate(value):
        messages.append(_message(item, f"messages[{index}]", messages))
    if messages[-1]["role"] != "assistant":
        role = messages[-1]["role"]
        raise BadLine(f"the last message is the {role}'s; it must be the assistant's")
    if messages[0]["role"] == "assistant":
        messages[0]["weight"] = 0
    if all(m.get("weight") == 0 for m in messages if m["role"] == "assistant"):
        raise BadLine(
            "there is nothing to learn: every assistant message has weight 0, or begins the chat "
            "where no request could ask for it"
        )
    check_answers(messages)
    return list(messages)


def _message(value: object, where: str, before: Sequence[Record]) -> dict[str, object]:
    if not isinstance(value, dict):
        raise BadLine(f"{where} is a JSON {kind_of(value)} where an object is needed")
    sent = value.get("role")
    if not isinstance(sent, str) or sent not in _FIELDS:
        raise BadLine(f"{where}.role is {shown(sent)}; known are {', '.join(_FIELDS)}")
    message: dict[str, object] = {"role": _ROLES.get(sent, sent)}
    calls = _calls(value, f"call{len(before):05}", where)
    if not calls:
        read = text if message["role"] in ("system", "tool") else written
        message["content"] = read(value.get("content"), where)
    elif not empty(value.get("content")):  # a call needs no text
        message["content"] = text(value["content"], where)
    if calls:
        message["tool_calls"] = calls
    for key in ("tool_call_id", "name", "reasoning_content"):
        if not empty(value.get(key)):
            message[key] = text(value[key], f"{where}.{key}")
    weight = value.get("weight")
    if weight is not None:
        if isinstance(weight, bool) or weight not in (0, 1):
            raise BadLine(f"{where}.weight is {shown(weight)}; it must be 0 or 1")
        message["weight"] = int(weight)
    if message["role"] == "tool":
        _check_tool(message, sent, before, where)
    return message


def _calls(value: Mapping[str, object], new_id: str, where: str) -> list[Record]:
    """The calls of a message, if it has any. The older form has one, and no id. Of nine letters and
    digits, it suits every template."""
    calls, older = value.get("tool_calls"), value.get("function_call")
    if value["role"] != "assistant":
        return []
    if empty(older):
        return [] if empty(calls) else read_calls(calls, where)
    if not empty(calls):
        raise BadLine(f"{where} has tool_calls and function_call, the older name; keep one")
    return read_calls([{"id": new_id, "function": older}], where)


def _check_tool(
    message: dict[str, object], sent: str, before: Sequence[Record], where: str
) -> None:
    """A tool answers the assistant, perhaps after other tools. One of the older form names no call:
    it answers the one before it."""
    previous = before[-1] if before else {"role": "the beginning"}
    if previous["role"] not in ("assistant", "tool"):
        raise BadLine(f"{where} is {sent} after {previous['role']}; it must answer the assistant")
    calls = previous.get("tool_calls")
    if sent == "function" and isinstance(calls, list):
        message["tool_call_id"] = calls[0]["id"]
