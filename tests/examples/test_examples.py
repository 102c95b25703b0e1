"""The export that ships, run by the examples as their page says: in Python and in a browser."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from deploynas.artifacts import sha256
from deploynas.data import normalise, resize
from deploynas.errors import DeploynasError
from deploynas.export.manifest import Manifest
from deploynas.runtimes.web import install
from deploynas.runtimes.web.runtime import find_browser

ROOT = Path(__file__).parents[2]
EXPORT = ROOT / "exports" / "fashion-mnist"
BOOT = ROOT / "examples" / "ankle-boot.png"
PAGE = (ROOT / "exports" / "README.md").read_text(encoding="utf-8")
SECONDS = 60.0
WAITING = """<!doctype html><iframe></iframe><script type="module">
  const frame = document.querySelector('iframe');
  frame.src = '/examples/browser/index.html' + location.search;
  for (;;) {
    await new Promise((go) => setTimeout(go, 50));
    const said = frame.contentDocument?.querySelector('pre')?.textContent;
    if (said) {
      await fetch('/said', { method: 'POST', body: said });
      break;
    }
  }
</script>"""


def scores(text: str) -> dict[str, float]:
    """Class -> score, in the order of the lines that an example printed."""
    lines = [line.split(None, 1) for line in text.strip().splitlines()]
    return {name: float(score) for score, name in lines}


def by_python(image: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "examples/python/classify.py", str(image)],
        cwd=ROOT, capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return scores(done.stdout)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A larger, wider, coloured image of the boot: it must be cropped and resized."""
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    wide = Image.new("RGB", (131, 97), (10, 0, 30))
    wide.paste(Image.open(BOOT).resize((97, 97)), (17, 0))
    wide.save(path)
    return path


def test_the_export_is_whole_small_and_of_no_one_machine() -> None:
    manifest = Manifest.read(EXPORT / "manifest.json")
    model = EXPORT / "model.onnx"
    assert sha256(model) == manifest.model_sha256
    assert sum(path.stat().st_size for path in EXPORT.iterdir()) <= 1_000_000
    files = {path.name for path in EXPORT.iterdir()}
    assert files == {"model.onnx", "manifest.json", "sbom.cdx.json"}
    paths = re.findall(r'"(/[^"]*)"', (EXPORT / "manifest.json").read_text())
    assert paths == ["/usr/share/datasets/fashion-mnist"]


def test_the_page_tells_the_numbers_of_the_manifest() -> None:
    manifest = Manifest.read(EXPORT / "manifest.json")
    assert manifest.accuracy is not None
    told = (
        f"{manifest.accuracy:.1%}".replace("%", " %"),
        f"{manifest.macs / 1e6:.2f} M MACs",
        f"{manifest.params:,} parameters",
        f"{(EXPORT / 'model.onnx').stat().st_size / 1e3:.0f} kB",
        f"onnxruntime-web@{install.runtime_version()}",
    )
    assert [one for one in told if one not in PAGE] == []


def test_python(photo: Path) -> None:
    found = by_python(BOOT)
    assert next(iter(found)) == "Ankle boot"
    assert next(iter(by_python(photo))) == "Ankle boot"
    # the same numbers as by the code that trained it
    manifest = Manifest.read(EXPORT / "manifest.json")
    look = manifest.preprocessing
    pixels = resize(np.asarray(Image.open(BOOT))[None, ..., None], look.resolution)
    session = onnxruntime.InferenceSession(EXPORT / "model.onnx")
    name = session.get_inputs()[0].name
    (logits,) = session.run(None, {name: normalise(pixels, look.mean, look.std)})[0]
    powers = np.exp(logits - logits.max())
    expected = dict(zip(manifest.classes, powers / powers.sum(), strict=True))
    for label, score in found.items():
        assert score == pytest.approx(expected[label], abs=1e-4)


@pytest.fixture(scope="module")
def browser() -> str:
    try:
        install.install_runtime()
        return find_browser()
    except DeploynasError as error:
        pytest.skip(str(error))


class Site(ThreadingHTTPServer):
    """The checkout as the page says to serve it, with the installed onnxruntime-web in place."""

    def __init__(self, given: Path) -> None:
        self.said: queue.Queue[str] = queue.Queue()
        self.asked: list[str] = []
        self.given = given
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(SimpleHTTPRequestHandler):
    server: Site

    def translate_path(self, path: str) -> str:
        path = path.partition("?")[0]
        self.server.asked.append(path)
        modules = "/examples/browser/node_modules/"
        if path.startswith(modules):
            return str(install.runtime_folder() / "node_modules" / path.removeprefix(modules))
        if path.startswith("/given/"):
            return str(self.server.given)
        return str(ROOT / path.lstrip("/"))

    def do_GET(self) -> None:
        if self.path.startswith("/waiting"):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(WAITING.encode())
            return
        super().do_GET()

    def do_POST(self) -> None:
        self.server.said.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def site(photo: Path) -> Iterator[Site]:
    with Site(photo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("image", ["/examples/ankle-boot.png", "/given/photo.png"])
def test_browser(image: str, browser: str, site: Site, photo: Path, tmp_path: Path) -> None:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    address = f"http://127.0.0.1:{site.server_address[1]}/waiting?image={image}"
    process = subprocess.Popen(
        [browser, *flags, f"--user-data-dir={tmp_path}", address], start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    try:
        found = scores(site.said.get(timeout=SECONDS))
    except queue.Empty:
        pytest.fail(f"the page said nothing; it asked for {site.asked}")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    expected = by_python(BOOT if image.startswith("/examples") else photo)
    assert next(iter(found)) == next(iter(expected)) == "Ankle boot"
    for label in found.keys() & expected.keys():
        assert found[label] == pytest.approx(expected[label], abs=0.01)
    assert any(path.endswith(".wasm") for path in site.asked)  # its own, not another host's
