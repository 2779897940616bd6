"""The book builds without a warning and asks nothing of the network."""

import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["intro", "method", "results/cifar10", "results/digits", "rerun", "results/trained-here", "api", "bibliography"]
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The HTML of a copy of the book; the page that `make book` trains is stood in for by the digits page."""
    folder = tmp_path_factory.mktemp("book")
    shutil.copy(ROOT / "_config.yml", folder)
    shutil.copytree(ROOT / "book", folder / "book", ignore=shutil.ignore_patterns("_build"))
    results = folder / "book" / "results"
    if not (results / "trained-here.ipynb").exists():
        shutil.copy(results / "digits.ipynb", results / "trained-here.ipynb")
    command = [sys.executable, "-m", "jupyter_book.cli.main", "build", "book", "--all", "-W", "--keep-going", "-n"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "book" / "_build" / "html"


@pytest.mark.parametrize("page", PAGES)
def test_no_page_names_a_resource_elsewhere(site, page):
    html = (site / f"{page}.html").read_text()
    loads = re.findall(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"([^\"]+)\"", html)
    loads += re.findall(r"<link[^>]*rel=\"(?:stylesheet|preload|icon|shortcut icon)\"[^>]*href=\"([^\"]+)\"", html)
    assert loads
    assert not [address for address in loads if re.match(r"(https?:)?//", address)]


def test_the_landing_page_shows_the_glued_figures(site):
    import pandas as pd

    from dynmia import rounded

    html = (site / "intro.html").read_text()
    for name in ("cifar10-baseline", "quick"):
        table = rounded(pd.read_csv(ROOT / "data" / f"{name}.csv", index_col="metric")).iloc[:, -1]
        assert table["centre-of-mass displacement"] in html


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("page", PAGES)
def test_no_console_error_with_the_network_blocked(site, page, tmp_path):
    handler = partial(SimpleHTTPRequestHandler, directory=str(site))
    handler.log_message = lambda *_: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = subprocess.run(
            [
                CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                "--disable-component-update", "--disable-sync", "--no-first-run", f"--user-data-dir={tmp_path}",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--enable-logging=stderr",
                "--virtual-time-budget=8000", "--dump-dom", f"http://127.0.0.1:{server.server_port}/{page}.html",
            ],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        server.shutdown()
    assert "<h1>" in done.stdout
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
