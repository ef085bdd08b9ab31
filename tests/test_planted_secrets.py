"""No command and no stage shows a planted secret, however the server that it asks fails."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest
from checkouts import checkout, python

pytestmark = pytest.mark.system

PASSWORD = "pl4nted/se@cret"
TOKEN = "t0ken-planted"
PIECES = ("pl4nted", "se@cret", "se%40cret", TOKEN)
ANSWERS = {
    "401": (401, "application/json", json.dumps({"error_code": "UNAUTHENTICATED", "message": "who are you?"})),
    "500": (500, "text/plain", "out of order"),
    "html": (200, "text/html", "<html><title>Please log in</title></html>"),
}
COMMANDS = (
    ("promote",),
    ("promote", "--rollback"),
    ("ui",),
    ("predict", "image.png", "--out", "answers"),
    ("export", "--out", "gain.onnx"),
    ("sync",),
    ("flow",),
    ("down",),
    ("doctor",),
)
# Every command and a stage, one after another in one process: each would take seconds to begin.
PROGRAM = """
import os, runpy, sys, traceback
from PIL import Image
Image.new("RGB", (32, 32)).save("image.png")
for arguments in {commands}:
    sys.argv = ["gain", *arguments]
    print("==", *arguments, flush=True)
    try:
        runpy.run_module("pipeline.cli.main", run_name="__main__")
    except SystemExit as end:
        print("exit", end.code, file=sys.stderr, flush=True)
    except BaseException:
        traceback.print_exc()
"""
REGISTER = """
from pathlib import Path
from stages.run import run_stage
from pipeline.release.facts import VersionFacts
from pipeline.release.registry import register_model
Path("w.safetensors").write_bytes(b"x")
def register(params, space):
    register_model(Path("w.safetensors"), "model", VersionFacts("run", {"weights_sha256": "0"}, {}, "card"))
run_stage("register", register, configures=True)
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    return checkout(tmp_path_factory.mktemp("secrets") / "repo")


def waiting_record(folder: Path) -> None:
    """A finished record that waits for MLflow, so that `gain sync` asks it."""
    spool = folder / ".tracking" / "run"
    (spool / "files").mkdir(parents=True, exist_ok=True)
    header = {"record": "1", "run_name": "run", "params": {}, "tags": {}, "weights_sha256": None, "dataset": None}
    (spool / "header.json").write_text(json.dumps(header))
    (spool / "events.jsonl").write_text(json.dumps({"kind": "finish", "time": 0}) + "\n")


@pytest.fixture(scope="module")
def answering() -> Iterator[Callable[[str], str]]:
    """Starts servers that answer everything alike; the place, HOST:PORT, of the one that answers so."""
    servers: list[ThreadingHTTPServer] = []

    def serve(name: str) -> str:
        status, kind, text = ANSWERS[name]

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's name
                pass

            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("fault", ["refusing", "unknown", "raw", *ANSWERS])
def test_no_command_and_no_stage_shows_a_secret(fault, answering, repository):
    place = answering(fault) if fault in ANSWERS else "nowhere.invalid" if fault == "unknown" else "127.0.0.1:9"
    password = PASSWORD if fault == "raw" else quote(PASSWORD, safe="")
    url = f"http://ann:{password}@{place}"
    waiting_record(repository)
    added = {
        "MLFLOW_TRACKING_URI": url,
        "PREFECT_API_URL": f"{url}/api",
        "MLFLOW_TRACKING_TOKEN": TOKEN,
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    said = ""
    for program in (PROGRAM.format(commands=COMMANDS), REGISTER):
        done = python(repository, "-c", program, **added)
        said += done.stdout + done.stderr
    for arguments in COMMANDS:
        assert f"== {' '.join(arguments)}" in said
    assert "register: error: " in said or "Error" in said
    assert not [line for line in said.splitlines() if any(piece in line for piece in PIECES)]
    left = [path for path in repository.rglob("*") if path.is_file() and path.stat().st_size < 10_000_000]
    assert not [path for path in left if any(piece.encode() in path.read_bytes() for piece in PIECES)]
    if fault == "raw":
        assert "promote: error: MLFLOW_TRACKING_URI: http://127.0.0.1:9 has an @ after a /, ? or #;" in said
    else:
        assert f"http://{place}" in said
