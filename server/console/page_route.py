"""A route of pages: it works in threads as the API's do, and shows errors as pages."""

import logging
from collections.abc import Callable, Coroutine
from typing import Any, cast

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from adapters_store.store_errors import StoreError
from server.api.app_services import Services
from server.api.threads import DatabaseRoute
from server.console.rendering import page_of
from server.errors import VerandahError
from server.refused_fields import refusal

log = logging.getLogger(__name__)


class PageRoute(DatabaseRoute):
    """Answers every error with a page that says it; one within a page, with a notice."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as invalid:
                error: Exception = refusal(invalid.errors(), None)
            except (VerandahError, StoreError, OSError, HTTPException) as known:
                error = known
            except Exception as unknown:
                log.exception("the page %s failed", request.scope["path"])
                error = unknown
            services = cast(Services, request.app.state.services)
            return page_of(request, services).failure(services.describe(error))

        return answer
