"""Look at every page of the site in a real browser: pictures in light, dark and on a phone, and what is wrong there.

A page is wrong if something on it is wider than the screen, a picture does not load, or a script fails.
"""

import argparse
import os
import shutil
import sys
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import sync_playwright

SITE = Path(__file__).resolve().parent.parent / "out" / "site"
LOOKS = {  # width and height in pixels, and colours
    "light": (1280, 1600, "light"),
    "dark": (1280, 1600, "dark"),
    "phone": (390, 1600, "light"),
}
WRONG = """() => {
    const wide = document.documentElement.scrollWidth - window.innerWidth;
    const broken = [...document.images].filter(image => !image.naturalWidth).map(image => image.src);
    return [...(wide > 0 ? [`${wide} pixels wider than the screen`] : []), ...broken];
}"""


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, *_):
        """Log nothing."""


@contextmanager
def serving(site):
    """The address of a local server of the site: pages that are opened as files have no search."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def look(site, output):
    """Take the pictures; return what is wrong as lines of text."""
    found = []
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with serving(site) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, (width, height, colours) in LOOKS.items():
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=colours)
            page.set_default_timeout(120_000)  # in milliseconds: a machine may be busy
            page.on("pageerror", partial(_failed, found, name))
            for path in sorted(site.rglob("*.html")):
                where = str(path.relative_to(site))
                page.goto(f"{address}/{where}")
                found += [f"{where}, {name}: {problem}" for problem in page.evaluate(WRONG)]
                picture = output / name / where.replace("/", "-").replace(".html", ".png")
                page.screenshot(path=picture)
        browser.close()
    return found


def _failed(found, name, error):
    found.append(f"{name}: {error}")


def main():
    """Look, and fail if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", type=Path, default=SITE)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    found = look(given.site, given.output)
    print("\n".join(found) or f"Nothing is wrong. Pictures: {given.output}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
