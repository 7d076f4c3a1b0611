"""Makes the pictures of the console in `docs/console/`, from a live server with real adapters.

    python -m tools.console_pictures --model smollm2-q4_1 --out docs/console

It starts a server with a home of its own, trains two adapters on `examples/`, and opens each page
in Debian's Chromium (`apt-get install chromium`). On two cores it takes about five minutes.
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from playwright.sync_api import FloatRect, Page, ViewportSize, expect, sync_playwright

from clients.python import Client

EXAMPLES = Path(__file__).parent.parent / "examples"
WIDE: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 390, "height": 844}
KEY = "a-key-for-the-pictures"
WHOLE = ("job", "jobs", "adapter", "data", "usage")
MOST_HEIGHT = 1800  # pixels of a picture of a whole page
QUESTION = "How do I get to the market?"


@dataclass(frozen=True)
class Things:
    """Ids of what the server has."""

    base: str
    file: str
    jobs: Sequence[str]


def main(argv: Sequence[str] | None = None) -> None:
    """Make all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="porch", help="as of `verandah serve`")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the pictures")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    with serving(options.model) as url, sync_playwright() as playwright:
        things = furnished(url)
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport=WIDE)
        page.goto(f"{url}/console/sign-in")
        kept(page, options.out / "sign-in.png")
        page.get_by_label("API key").fill(KEY)
        page.keyboard.press("Enter")
        for name, path in pages(things).items():
            taken(page, url + path, options.out / f"{name}.png")
        page.set_viewport_size(PHONE)
        taken(page, f"{url}/console", options.out / "home-phone.png")
        browser.close()


def pages(things: Things) -> dict[str, str]:
    """The page of each picture."""
    models = "&".join(f"model={name}" for name in (things.base, "pirate", "butler"))
    return {
        "home": "/console",
        "data": f"/console/data/{things.file}",
        "job": f"/console/jobs/{things.jobs[0]}",
        "jobs": "/console/jobs/compare?" + "&".join(f"job={job}" for job in things.jobs),
        "compare": f"/console/compare?{models}&prompt={QUESTION}",
        "adapters": "/console/adapters",
        "adapter": "/console/adapters/pirate",
        "usage": "/console/usage",
        "keys": "/console/keys",
        "admin": "/console/admin",
    }


def taken(page: Page, address: str, out: Path) -> None:
    """Take the picture of a page once it has settled; of Compare, with its answers."""
    page.goto(address)
    if out.stem == "compare":
        page.locator("#send").click()
        expect(page.get_by_text("Good", exact=True)).to_have_count(3, timeout=120_000)
        page.locator("#send").scroll_into_view_if_needed()
    if out.stem == "adapter":
        analyse = page.get_by_role("button", name="Analyse it")
        if analyse.is_visible():
            analyse.click()
        expect(page.locator("svg.heatmap").first).to_be_visible(timeout=120_000)
    page.wait_for_timeout(3_000)
    kept(page, out)


def kept(page: Page, out: Path) -> None:
    """Write the picture with 128 colours, which a page of few colours does not need more of."""
    tall = page.evaluate("document.documentElement.scrollHeight")
    size = page.viewport_size or WIDE
    height = min(tall, MOST_HEIGHT) if out.stem in WHOLE else size["height"]
    clip: FloatRect = {"x": 0, "y": 0, "width": size["width"], "height": height}
    whole = out.stem in WHOLE
    shot = page.screenshot(full_page=whole, clip=clip if whole else None)
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(128).save(out, optimize=True)
    print(out, flush=True)


def furnished(url: str) -> Things:
    """Train two adapters, and ask them something."""
    with Client(url, api_key=KEY) as client:
        base = client.models()[0]
        files = [client.upload(EXAMPLES / f"{name}.jsonl").id for name in ("pirate", "butler")]
        jobs = [
            client.train(file, suffix=name).id
            for file, name in zip(files, ("pirate", "butler"), strict=True)
        ]
        for job in jobs:
            print(job, client.wait(job).status, flush=True)
        for model in (base, "pirate", "butler"):
            client.answer(model, [{"role": "user", "content": QUESTION}], max_tokens=40)
        return Things(base, files[0], jobs)


@contextmanager
def serving(model: str) -> Iterator[str]:
    """A server with an empty home, until the end of the context; its address."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "server", "serve", "--model", model, "--port", "0"]
        variables = {k: v for k, v in os.environ.items() if not k.startswith("VERANDAH_")}
        variables["VERANDAH_API_KEY"] = KEY
        with subprocess.Popen(
            [*command, "--home", f"{folder}/home"], env=variables, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            try:
                yield process.stdout.readline().removeprefix("serving at ").strip()
            finally:
                process.terminate()


if __name__ == "__main__":
    main()
