"""Which server or database records go to, and the health check of every server."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pipeline.tracking import server
from pipeline.tracking.server import local_database, problem_with, tracking_uri


@pytest.fixture
def url() -> Iterator[str]:
    """A server that passes its check at /good/health and answers 503 anywhere else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/good/health" else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{listener.server_port}"
        listener.shutdown()
        thread.join()


def test_health_is_asked_below_the_address(url):
    assert problem_with(f"{url}/good") is None
    assert problem_with(f"{url}/good/") is None
    assert problem_with(url) == "HTTP 503"


def test_server_that_is_silent_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(server, "ANSWER_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert problem_with(f"http://127.0.0.1:{silent.getsockname()[1]}") == "no answer within 0 s"


def test_server_that_cannot_be_reached_is_named_without_its_password():
    assert problem_with("http://ann:hidden@127.0.0.1:9") == "127.0.0.1:9 cannot be reached"


def test_records_go_to_a_database_here_unless_an_address_is_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert tracking_uri() == "sqlite:///mlflow.db"
    assert local_database() == tmp_path / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////srv/mlflow.db")
    assert str(local_database()) == "/srv/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert local_database() is None
