"""The app as a server: who reaches it, what it hands out, what it leaves behind; and the functions for programs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dynadrag_pipeline.app.samples import sample_picture
from dynadrag_pipeline.app.server import check_address, is_loopback, running_app
from dynadrag_pipeline.cli import main
from support.app_pages import MODEL, edits_running, quick_pipeline, wait_until

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return quick_pipeline()


@pytest.fixture(scope="module")
def address(pipeline: Any) -> Iterator[str]:
    with running_app(pipeline, MODEL) as address:
        yield address


@pytest.fixture
def portrait(tmp_path: Path) -> Path:
    path = tmp_path / "portrait.png"
    sample_picture("hopper").resize((96, 96)).save(path)
    return path


def answer(url: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.status, response.headers
    except urllib.error.HTTPError as error:
        return error.code, error.headers


@pytest.mark.embedded
def test_programs_edit_and_preview_as_the_example_in_the_docs(address: str, portrait: Path, pipeline: Any) -> None:
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False, download_files=str(portrait.parent))
    picture, record, said = client.predict(
        image=handle_file(portrait), handles=[[48, 58]], targets=[[55, 58]], seed=3, api_name="/edit"
    )
    called = pipeline(Image.open(portrait), [(48, 58)], [(55, 58)], generator=torch.Generator().manual_seed(3))
    assert np.array_equal(np.asarray(Image.open(picture)), np.asarray(called.images[0]))
    assert record["seed"] == 3
    assert record["handles"] == [[48, 58]]
    assert "pair 1" in said
    preview, paths = client.predict(
        image=handle_file(portrait), handles=[[48, 58]], targets=[[55, 58]], api_name="/preview"
    )
    assert Image.open(preview).size == (96, 96)
    assert paths[0][-1] == pytest.approx([55, 58], abs=0.01)
    with pytest.raises(Exception, match="`handles` must lie inside the picture"):
        client.predict(image=handle_file(portrait), handles=[[480, 58]], targets=[[55, 58]], api_name="/edit")
    endpoints = set(client.view_api(return_format="dict")["named_endpoints"])
    assert endpoints == {"/edit", "/preview"}


@pytest.mark.embedded
def test_nothing_of_the_machine_is_handed_out(address: str) -> None:
    for path in ("/etc/passwd", str(ROOT / "setup.py"), "../../etc/passwd", "/proc/self/environ"):
        assert answer(f"{address}gradio_api/file={path}")[0] in (403, 404)
    status, headers = answer(address)
    assert status == 200
    assert "default-src 'self'" in headers["content-security-policy"]


@pytest.mark.embedded
@pytest.mark.parametrize(("number", "in_an_edit"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_the_command_prints_its_address_and_leaves_nothing(
    tmp_path: Path, portrait: Path, number: signal.Signals, in_an_edit: bool
) -> None:
    """Whether it is asked to end while it waits, or by Ctrl+C in the middle of an edit."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "torch")  # torch makes one, whoever imports it
    command = [sys.executable, "-m", "dynadrag_pipeline", "app"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, env=environment, cwd=tmp_path) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("dynadrag app: http://127.0.0.1:")
            (folder,) = temporary.iterdir()
            if in_an_edit:
                begin_an_edit(line.split()[2], portrait)
            process.send_signal(number)
            said, complaints = process.communicate(timeout=120)
        finally:
            process.kill()
    assert "nothing was kept" in said
    assert "Traceback" not in complaints
    assert process.returncode == 0
    assert folder.name.startswith("dynadrag-app-")
    assert list(temporary.iterdir()) == []


def begin_an_edit(address: str, portrait: Path) -> Any:
    """Ask for an edit that takes many minutes, wait until it is on its way, and return the client."""
    from gradio_client import Client, handle_file
    from gradio_client.utils import Status

    client = Client(address, verbose=False, download_files=str(portrait.parent))
    job = client.submit(
        handle_file(portrait), [[48, 58]], [[55, 58]], options={"identity_lora_steps": 10_000}, api_name="/edit"
    )
    wait_until(lambda: job.status().code is Status.PROCESSING)
    time.sleep(2)  # into the steps of the LoRA
    return client


@pytest.mark.embedded
def test_an_edit_ends_when_the_program_that_asked_for_it_has_gone(
    address: str, portrait: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_HEARTBEAT_INTERVAL", "0.2")  # seconds, after which a closed connection is noticed
    client = begin_an_edit(address, portrait)
    assert edits_running() == 1
    client.close()
    wait_until(lambda: not edits_running())


def test_other_machines_are_let_in_on_request_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "192.168.0.4", "name")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]
    assert main(["app", "--host", "0.0.0.0", "--share-never"]) == 2
    assert "--share-never refuses" in capsys.readouterr().err
    assert main(["app", "--port", "99999"]) == 2
    assert "--port must be from 1 to 65535" in capsys.readouterr().err


def test_an_address_that_is_taken_or_elsewhere_is_refused_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["app", "--port", str(port)]) == 2
        assert f"--port: {port} is taken" in capsys.readouterr().err
    check_address("127.0.0.1", port)
    assert main(["app", "--host", "192.0.2.1"]) == 2  # kept for documents, so no machine has it
    assert "--host: cannot listen on 192.0.2.1" in capsys.readouterr().err


def test_without_gradio_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["app"]) == 2
    assert "pip install 'dynadrag[app]'" in capsys.readouterr().err
