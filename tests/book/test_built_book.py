"""The book builds without a warning and asks nothing of the network."""

import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import yaml
from helpers import ROOT

pytestmark = pytest.mark.slow("builds the whole book")
# what Chromium asks of its maker by itself (time, updates, models); a page's fonts or scripts come from other hosts
OWN = re.compile(r"(https?://)?([\w-]+\.google\.com|(update|optimizationguide-pa|safebrowsing)\.googleapis\.com)\b")
TOC = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
PAGES = [TOC["root"], *(page["file"] for part in TOC["parts"] for page in part["chapters"])]
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The HTML of a copy of the book; the page that `make book` trains is stood in for by the digits page."""
    folder = tmp_path_factory.mktemp("book")
    shutil.copy(ROOT / "_config.yml", folder)
    shutil.copytree(ROOT / "data", folder / "data", ignore=shutil.ignore_patterns("*.nc", "*.py", "__pycache__"))
    shutil.copytree(ROOT / "book", folder / "book", ignore=shutil.ignore_patterns("_build", ".ipynb_checkpoints"))
    results = folder / "book" / "results"
    if not (results / "trained-here.ipynb").exists():
        shutil.copy(results / "digits.ipynb", results / "trained-here.ipynb")
    command = [Path(sys.executable).with_name("jupyter-book"), "build", "book", "--all", "-W", "--keep-going", "-n"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "_build" / "html"


@pytest.mark.parametrize("page", PAGES)
def test_no_page_names_a_resource_elsewhere(site, page):
    html = (site / f"{page}.html").read_text()
    loads = re.findall(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"([^\"]+)\"", html)
    loads += re.findall(r"<link[^>]*rel=\"(?:stylesheet|preload|icon|shortcut icon)\"[^>]*href=\"([^\"]+)\"", html)
    assert loads
    assert not [address for address in loads if re.match(r"(https?:)?//", address)]


def test_the_landing_page_shows_the_glued_figures(site):
    from dynmia import rounded
    from dynmia.book import figures

    html = (site / "intro.html").read_text()
    for name in ("cifar10-baseline-cosine", "quick"):
        table = rounded(figures(ROOT / "data").loc[name]).iloc[:, -1]
        assert table["centre-of-mass displacement"] in html


class Proxy(BaseHTTPRequestHandler):
    """Refuses every request that leaves the machine, and remembers it."""

    asked: ClassVar[list[str]] = []

    def refuse(self):
        self.asked.append(self.path)
        self.send_error(502)

    do_GET = do_POST = do_CONNECT = do_HEAD = refuse

    def log_message(self, *_):
        pass


def serve(handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def visit(address, folder):
    """Open a page in headless Chromium behind the proxy: its DOM, console errors, and what it asked of the network."""
    proxy = serve(Proxy)
    Proxy.asked.clear()
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--no-first-run", "--enable-logging=stderr", "--virtual-time-budget=8000", "--dump-dom",
    ]  # fmt: skip
    command = [CHROMIUM, *flags, f"--user-data-dir={folder}", f"--proxy-server=127.0.0.1:{proxy.server_port}", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    proxy.shutdown()
    words = ("Uncaught", "Error", "Refused", "Failed")
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line and any(word in line for word in words)]
    return done.stdout, console, [path for path in Proxy.asked if not OWN.match(path)]


@pytest.fixture(scope="module")
def server(site):
    handler = partial(SimpleHTTPRequestHandler, directory=str(site))
    handler.log_message = lambda *_: None
    (site / "bad.html").write_text(
        '<article><script src="http://example.org/x.js"></script><script>f()</script></article>'
    )
    return serve(handler)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("page", PAGES)
def test_a_page_asks_nothing_of_the_network_and_has_no_console_error(server, page, tmp_path):
    dom, console, asked = visit(f"http://127.0.0.1:{server.server_port}/{page}.html", tmp_path)
    assert "<article" in dom
    assert console == []
    assert asked == []


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_bad_page_would_be_noticed(server, tmp_path):
    _, console, asked = visit(f"http://127.0.0.1:{server.server_port}/bad.html", tmp_path)
    assert len(console) == 1
    assert asked == ["http://example.org/x.js"]
