"""Bundles: a real file, run by a plain interpreter in another folder, and read back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import zipfile

import pytest

from deploynas.device import LocalDevice
from deploynas.errors import DeviceMismatchError, InvalidInputError, MissingFileError
from deploynas.profile import LatencyModel, profile_space
from deploynas.profile.bundle import read_results, write_bundle
from deploynas.spaces import space

pytestmark = pytest.mark.slow

SPACE = space("mobile-small", 10, 1, [20])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "pi.pyz"
    num_models, size = write_bundle(path, SPACE, budget_minutes=0.1, soft_seconds=0.0)
    assert num_models > len(SPACE.layer_table)
    assert size == path.stat().st_size < 1_000_000
    return path


def run(bundle, folder, *arguments, python=sys.executable, until=None):
    """Run it as a person on the device does; interrupted once ``until`` has a few rounds."""
    command = [python, str(bundle), *arguments]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # tests that run in a shell's background inherit that an interrupt is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while until is not None and process.poll() is None:
        if until.exists() and until.read_bytes().count(b"\n") > 3:
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.01)
    out, err = process.communicate()
    return process.returncode, out, err


@pytest.fixture(scope="module")
def results(bundle, tmp_path_factory):
    """What it wrote, in two goes."""
    folder = tmp_path_factory.mktemp("device")
    path = folder / "pi.results.jsonl"
    code, _, err = run(bundle, folder, until=path)
    assert (code, err.splitlines()[-1]) == (1, "stopped; run it again, it goes on")
    before = path.read_bytes()
    with pytest.raises(InvalidInputError, match="not finished .run the bundle again"):
        read_results(path)
    path.write_bytes(before + b'{"round": {"num')  # the device lost its power in mid line
    code, out, _ = run(bundle, folder)
    assert code == 0
    assert "deploynas profile --import pi.results.jsonl" in out
    assert path.read_bytes().startswith(before)
    again = path.read_bytes()
    assert run(bundle, folder)[0] == 0
    assert path.read_bytes() == again  # all was done
    return path


@pytest.mark.long
def test_results_become_a_profile(results, tmp_path):
    found, precision, device = read_results(results)
    assert precision == "fp32"
    assert (found.name, found.num_classes, found.resolutions) == ("mobile-small", 10, (20,))
    assert not device.identity.differences(LocalDevice().identity)
    profile, measured = profile_space(found, device, tmp_path / "pi.json")
    assert measured == len(SPACE.layer_table)
    assert LatencyModel(SPACE, profile).predict_ms(SPACE.largest())[0] > 0
    before = {key: record.samples for key, record in profile.layers.items()}
    journal = tmp_path / "again.json.journal"
    with pytest.raises(KeyboardInterrupt):  # an import that is interrupted, and repeated
        profile_space(found, device, tmp_path / "again.json", on_progress=interrupt)
    assert journal.exists()
    again, _ = profile_space(found, device, tmp_path / "again.json")
    assert {key: record.samples for key, record in again.layers.items()} == before
    _, measured = profile_space(found, device, tmp_path / "pi.json")
    assert measured == 0
    other = space("mobile-small", 10, 1, [28])
    with pytest.raises(DeviceMismatchError, match="the results lack"):
        profile_space(other, device, tmp_path / "pi.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace('"ms"', '"xs"').replace("0.1", "0.2", 1), "cut or edited"),
        (lambda text: text[: len(text) // 2], "not finished|cut or edited"),
        (lambda text: "", "cut or edited"),
        (lambda text: text.replace(json.loads(text.splitlines()[0])["plan"], "0" * 64, 1),
         "cut or edited"),
    ],
)  # fmt: skip
def test_results_that_were_changed(change, said, results, tmp_path):
    path = tmp_path / "changed.jsonl"
    path.write_text(change(results.read_text()))
    with pytest.raises(InvalidInputError, match=said):
        read_results(path)


def test_results_that_are_not_there(tmp_path, bundle):
    with pytest.raises(MissingFileError):
        read_results(tmp_path / "none.jsonl")
    with pytest.raises(InvalidInputError, match="not what a bundle wrote"):
        read_results(bundle)


def interrupt(text, share):
    if share > 0.2:
        raise KeyboardInterrupt


def rewritten(bundle, path, name, content):
    with zipfile.ZipFile(bundle) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.namelist():
            new.writestr(entry, content if entry == name else old.read(entry))
    return path


@pytest.mark.slow
def test_a_bundle_that_was_tampered_with(bundle, tmp_path):
    with zipfile.ZipFile(bundle) as archive:
        plan = archive.read("plan.json")
        model = next(n for n in archive.namelist() if n.startswith("models/"))
        content = archive.read(model)
    other_plan = rewritten(bundle, tmp_path / "plan.pyz", "plan.json", plan.replace(b"8", b"9"))
    code, _, err = run(other_plan, tmp_path)
    assert (code, err) == (1, "error: the bundle's plan was changed after it was made\n")
    other = rewritten(bundle, tmp_path / "model.pyz", model, content[:-1] + b"x")
    code, _, err = run(other, tmp_path)
    assert (code, err) == (1, "error: the bundle's models were changed after it was made\n")
    flipped = bytearray(bundle.read_bytes())
    flipped[len(flipped) // 2] ^= 0xFF
    damaged = tmp_path / "damaged.pyz"
    damaged.write_bytes(flipped)
    code, _, err = run(damaged, tmp_path)
    assert (code, err.count("\n")) == (1, 1)
    cut = tmp_path / "cut.pyz"
    cut.write_bytes(bundle.read_bytes()[:-3000])
    assert run(cut, tmp_path)[0] == 1


@pytest.mark.slow
def test_what_a_device_may_lack(bundle, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    code, _, err = run(bundle, tmp_path, python=str(tmp_path / "bare/bin/python"))
    assert (code, err.count("\n")) == (1, 1)
    assert "has no numpy; try: pip install numpy onnxruntime" in err
    taken = tmp_path / "pi.results.jsonl"
    for text in ("something else\n", "5\n", '{"end": 1}\n{"end": 1}\n'):
        taken.write_text(text)
        code, _, err = run(bundle, tmp_path)
        said = "error: pi.results.jsonl holds something else: name another file\n"
        assert (code, err) == (1, said)


def test_results_of_another_device_are_not_continued(bundle, results, tmp_path):
    lines = results.read_text().splitlines(keepends=True)[:3]
    first = json.loads(lines[0])
    first["identity"]["runtime"] = "onnxruntime 1.2"
    (tmp_path / "pi.results.jsonl").write_text(json.dumps(first) + "\n" + "".join(lines[1:]))
    code, _, err = run(bundle, tmp_path)
    assert code == 1
    assert "was begun on another device or runtime" in err
