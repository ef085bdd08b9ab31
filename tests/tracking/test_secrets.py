"""Passwords, tokens and signatures in texts, lines, log records and what is recorded."""

import json
import logging
import subprocess
import sys
import time

import pytest
from checkouts import REPOSITORY, environment

from pipeline.base.secrets import _CleanStream, cleaned, cleaned_file, without_secrets
from pipeline.tracking.tracker import SPOOLS, Tracker

PLANTED = "pl4nted/se@cret"  # with both characters that end a password for one reader or another


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ann:hidden@example.org:5000/x", "http://example.org:5000/x"),
        ("http://ann:hid/d@n@example.org:5000/x y@z", "http://example.org:5000/x y@z"),
        ("postgresql+psycopg2://ann:hid%40den@db/mlflow", "postgresql+psycopg2://db/mlflow"),
        ("cannot reach ssh://token@host/a and s3://bucket/key", "cannot reach ssh://host/a and s3://bucket/key"),
        ("'http://ann:hid'd,n@host', it says", "'http://host', it says"),
        ("http://host/?token=abc&page=1", "http://host/?token=***&page=1"),
        ("with url: /?access_token=abc/api/2.0 (refused)", "with url: /?access_token=*** (refused)"),
        ("s3.org/b?X-Amz-Credential=AK%2Fus&X-Amz-Signature=0a1b", "s3.org/b?X-Amz-Credential=***&X-Amz-Signature=***"),
        ("?next=http%3A%2F%2Fann%3Ahid%2Fden%40host%3A5000&page=1", "?next=http%3A%2F%2Fhost%3A5000&page=1"),
        ("?next=http%253A%252F%252Fann%253Ahid%2540den%2540host", "?next=http%253A%252F%252Fhost"),
        ("?next=http%3A%2F%2Fhost%3Ftoken%3Dabc%26page%3D1", "?next=http%3A%2F%2Fhost%3Ftoken%3D***%26page%3D1"),
        ("host=db user=ann password=hidden port=1", "host=db user=ann password=*** port=1"),
        ("{'Authorization': 'Basic YW5u'}", "{'Authorization': 'Basic ***'}"),
    ],
)
def test_secrets_of_an_address_are_taken_out_however_it_is_written(text, shown):
    assert without_secrets(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:///mlflow.db",
        "sqlite:////home/ann@work/mlflow.db",
        "who@example.org wrote http://example.org",
        "pretrain: epoch 1/10 loss/total=0.3 num_tokens=5 accuracy 100%",
        '{"url": "http://example.org/x","mail":"ann@example.org"}',
    ],
)
def test_other_text_stays(text):
    assert without_secrets(text) == text


def test_what_the_environment_holds_is_masked_wherever_it_stands(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:pl4nted%2Fse%40cret@host:5000")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken-planted")
    monkeypatch.setenv("GAIN_MIRROR", "https://host/f?X-Amz-Signature=s1gned00")
    said = [PLANTED, "pl4nted%2Fse%40cret", "t0ken-planted", "s1gned00", "YW5uOnBsNG50ZWQvc2VAY3JldA=="]
    assert without_secrets(" ".join(said)) == "*** *** *** *** ***"
    assert without_secrets("port 'pl4nted' is no number") == "port '***' is no number"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:12@host:5000")
    assert without_secrets("epoch 12 of http://ann:12@host") == "epoch 12 of http://host"


def test_long_texts_take_no_longer_than_their_length():
    begin = time.monotonic()
    for part in ("http://", "http%3A%2F%2F", "a%40", "a-", "a=", "authorization ", "token="):
        without_secrets(part * 20_000)
    assert time.monotonic() - begin < 30.0  # quadratic, one of them takes minutes


def test_values_and_files_are_cleaned_and_pictures_stay():
    value = {"mirrors": ["http://ann:hidden@host/x"], "epochs": 3, "rate": None}
    assert cleaned(value) == {"mirrors": ["http://host/x"], "epochs": 3, "rate": None}
    assert cleaned_file(b"url\nhttp://ann:hidden@host/x\n") == b"url\nhttp://host/x\n"
    assert cleaned_file(b"\x89PNG http://ann:hidden@host") == b"\x89PNG http://ann:hidden@host"


def test_a_clean_stream_is_the_stream_in_all_else(capsys):
    stream = _CleanStream(sys.stdout)
    assert stream.write("http://ann:hidden@host\n") == len("http://ann:hidden@host\n")
    stream.writelines(["http://ann:hidden@other\n"])
    assert (stream.isatty(), stream.encoding, stream.errors) == (False, sys.stdout.encoding, sys.stdout.errors)
    stream.close()
    print("still open")
    assert capsys.readouterr().out == "http://host\nhttp://other\nstill open\n"


@pytest.mark.system
def test_a_process_shows_no_secret_in_lines_logs_warnings_and_tracebacks(tmp_path):
    program = """
import logging, sys, threading, warnings
from pipeline.base.secrets import hide_secrets
hide_secrets()
logging.basicConfig(stream=open("log", "w"))
URL = "http://ann:" + "hid/d@en@host"
logging.getLogger("x").error("cannot reach %s, %d %%", URL, 3)
try:
    raise ValueError(URL)
except ValueError:
    logging.getLogger("x").exception("failed")
print("on", URL)
warnings.warn(URL)
def fail(): raise KeyError(URL)
thread = threading.Thread(target=fail); thread.start(); thread.join()
sys.exit(URL) if sys.argv[1:] else fail()
"""
    for arguments in ([], ["exit"]):
        command = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(REPOSITORY), capture_output=True, text=True, check=False
        )
        said = done.stdout + done.stderr + (tmp_path / "log").read_text()
        assert done.returncode == 1
        assert "on http://host\n" in said
        assert "cannot reach http://host, 3 %" in said
        assert "ValueError: http://host" in said
        assert "KeyError: 'http://host'" in said
        assert "hid" not in said.replace("hide_secrets", "").replace('"hid/d@en@host"', "")


def test_a_record_is_written_without_secrets(tmp_path, monkeypatch):
    class Listener:
        def send(self, name: str) -> None:
            pass

    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("http://ann:hidden@host/notes")
    url = "https://ann:hidden@mirror/weights?X-Amz-Signature=hidden"
    params = {"pretrain": {"weights": {"mirrors": [url]}}}
    with Tracker(Listener(), "run", run_name="run", params=params, tags={"from": url}) as tracker:
        tracker.set_tags({"late": url})
        tracker.describe(url)
        tracker.log_artifact(tmp_path / "notes.txt")
    texts = {path: path.read_text() for path in (SPOOLS / "run").rglob("*") if path.is_file()}
    assert not [path for path, text in texts.items() if "hidden" in text]
    header = json.loads(texts[SPOOLS / "run" / "header.json"])
    assert header["tags"]["from"] == "https://mirror/weights?X-Amz-Signature=***"
    assert header["params"]["pretrain.weights.mirrors"] == "['https://mirror/weights?X-Amz-Signature=***"


def test_log_records_keep_what_they_said(caplog, monkeypatch):
    monkeypatch.setattr(logging, "_logRecordFactory", logging.getLogRecordFactory())
    from pipeline.base.secrets import _clean_record

    logging.setLogRecordFactory(_clean_record)
    logging.getLogger("x").warning("%s is %d %% done", "pretrain", 50)
    assert caplog.messages == ["pretrain is 50 % done"]
