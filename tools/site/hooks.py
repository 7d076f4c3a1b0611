"""Hooks of MkDocs: pages from outside `docs/`, the HTTP reference, and links between all of them.

In the repository, links are paths, so that they work where it is browsed. A link to a file that the
site does not have becomes plain text.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

from server.app import http_api
from tools.site.openapi_page import openapi_page

ROOT = Path(__file__).parents[2]
# Pages of the site that lie outside docs/, and where.
OUTSIDE = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "docker.md": "docker/README.md",
}
_PAGE_OF = {source: page for page, source in OUTSIDE.items()}
_LINK = re.compile(r"(!?)\[((?:[^\]\[]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that `docs/` does not hold."""
    for page, source in OUTSIDE.items():
        text = (ROOT / source).read_text("utf-8")
        files.append(File.generated(config, page, content=text))
    document = http_api().openapi()
    files.append(File.generated(config, "http.md", content=openapi_page(document)))
    files.append(File.generated(config, "openapi.json", content=json.dumps(document, indent=1)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn paths in the repository into pages of the site."""
    here = page.file.src_uri
    source = OUTSIDE.get(here, f"docs/{here}")

    def linked(match: re.Match[str]) -> str:
        mark, text, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path, _, anchor = target.partition("#")
        in_repository = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        uri = _PAGE_OF.get(in_repository) or in_repository.removeprefix("docs/")
        if files.get_file_from_path(uri) is None:
            return text
        relative = posixpath.relpath(uri, posixpath.dirname(here) or ".")
        return f"{mark}[{text}]({relative}{'#' + anchor if anchor else ''})"

    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(linked, part) for part in parts)
