"""Reads times such as 30d."""

import re
from collections.abc import Mapping

from server.config import BadOption

_UNITS: Mapping[str, int] = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def seconds(option: str, text: str) -> int:
    """A time such as 30d, in seconds. Raises BadOption."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if match is None:
        raise BadOption(f"{option} {text!r} is not a time: write a number and s, m, h or d: 30d")
    return int(match[1]) * _UNITS[match[2]]
