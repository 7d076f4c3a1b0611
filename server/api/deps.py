"""What handlers ask for by type: the wired parts, and who is asking."""

from typing import Annotated, cast

from fastapi import Depends, Request

from server.api.interfaces import Services


def _parts(request: Request) -> Services:
    return cast(Services, request.app.state.parts)


def _owner(request: Request) -> str:
    # Put there by `server.api.gate.KeyCheck`, before a byte of the body was read.
    return cast(str, request.scope["verandah.owner"])


GivenParts = Annotated[Services, Depends(_parts)]
CurrentOwner = Annotated[str, Depends(_owner)]
