"""Parameters that several endpoints have, with what the OpenAPI page tells of them."""

from typing import Annotated

from fastapi import Path, Query

FileId = Annotated[
    str, Path(description="The file's id.", examples=["file-c82e70060c3146a0c51f9d95"])
]
JobId = Annotated[
    str, Path(description="The job's id.", examples=["ftjob-9a7ef0974daef0bb7dc4395c"])
]
ShareId = Annotated[
    str, Path(description="The share's id.", examples=["share_5d41402abc4b2a76b9719d91"])
]
AdapterId = Annotated[
    str,
    Path(
        description="The adapter: NAME for its latest version, or NAME@VERSION.",
        examples=["pirate"],
    ),
]
ModelId = Annotated[
    str, Path(description="The base, an adapter's NAME, or NAME@VERSION.", examples=["pirate"])
]
After = Annotated[
    str | None, Query(description="The last id of the previous page: the page begins after it.")
]
