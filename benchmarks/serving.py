"""What a served answer costs beside the bare forward pass, one image a request; and how long a promotion takes.

`python -m benchmarks.serving` registers networks with random weights in a folder of its own, serves them on loopback
with `mlflow models serve`, asks and computes in turn, prints a table and writes benchmarks/serving.json.
"""

import base64
import io
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import requests
import torch
from PIL import Image

from benchmarks.guidance import FULL_WIDTH
from benchmarks.machine import machine
from pipeline.base.files import write_json
from pipeline.data.samples import normalise
from pipeline.model.fcn8s import FCN8s
from pipeline.model.weights import save_weights
from pipeline.release.prediction import Outputs

REPOSITORY = Path(__file__).parents[1]
NAME = "fcn8s-gain"
NETWORKS: dict[str, tuple[dict[str, Any], int, int]] = {  # options, number of classes, side of the image in pixels
    "embedded": ({"width": 0.25, "fc_channels": 256, "head_channels": 256, "batch_norm": True}, 6, 96),
    "voc2012": ({"padding": 100}, 20, 320),
}
ROUNDS = {"embedded": 40, "voc2012": 12}
START_SECONDS = 180.0
JSON = {"Content-Type": "application/json"}
REGISTER = """
import sys
from pathlib import Path
from pipeline.base.files import digest_file
from pipeline.release.facts import VersionFacts
from pipeline.release.registry import register_model
name, attention_iou = sys.argv[1], float(sys.argv[2])
scores = {"mean_iou": 0.8, "macro_f1": 0.9, "attention_iou": attention_iou, "worst_group": 0.1}
tags = {"weights_sha256": digest_file(Path(name)), "test_data_digest": "same"}
register_model(Path(name), "fcn8s-gain", VersionFacts(name, tags, scores, name))
"""


def main() -> None:
    """Measure and report."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = prepare(folder)
        rows: list[dict[str, Any]] = []
        promotions = []
        for title, (_, _, side) in NETWORKS.items():
            better = 0.1 * (1 + len(rows))  # than the champion, so that the promotion takes place
            network = register_network(folder, environment, title, attention_iou=better)
            command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", f"models:/{NAME}@challenger"]
            with served([*command, "--env-manager", "local"], folder, environment) as (url, _):
                rows.append({"network": title, "side": side, **_compare(url, network, side, ROUNDS[title])})
            begin = time.perf_counter()
            command = [sys.executable, "-m", "pipeline.cli.main", "promote"]
            subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
            promotions.append(time.perf_counter() - begin)
    result = {
        "machine": machine(),
        "served": rows,
        "promotion_seconds": promotions,
    }
    write_json(Path(__file__).with_suffix(".json"), result)
    print("| network, image | bare forward, ms | answer, ms | added |\n|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['network']}, {row['side']} x {row['side']} | {row['forward_ms']:.0f} | {row['answer_ms']:.0f} | "
            f"{row['added']:.0%} |"
        )
    print(f"\n`gain promote`: {', '.join(f'{seconds:.1f}' for seconds in promotions)} s")


def prepare(folder: Path) -> dict[str, str]:
    """The environment for commands that work in a folder of their own, with a registry of its own."""
    shutil.copy(REPOSITORY / "params.yaml", folder)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # MLflow calls uvicorn by name
    return {**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}


def register_network(folder: Path, environment: dict[str, str], title: str, *, attention_iou: float) -> FCN8s:
    """One of `NETWORKS` with random weights, now the challenger of the folder's registry."""
    options, num_classes, _ = NETWORKS[title]
    network = FCN8s(num_classes, FULL_WIDTH.model_copy(update=options)).eval()
    save_weights(folder / title, network, tuple(f"class {index}" for index in range(num_classes)))
    command = [sys.executable, "-c", REGISTER, title, str(attention_iou)]
    subprocess.run(command, cwd=folder, env=environment, check=True)
    return network


def request_of(picture: Image.Image) -> str:
    """The body of a request for one image, sent as JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG")
    image = base64.b64encode(buffer.getvalue()).decode()
    return json.dumps({"dataframe_split": {"columns": ["image"], "data": [[image]]}})


def random_picture(side: int) -> Image.Image:
    """Coarse noise, which JPEG makes as small as a photograph."""
    noise = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side))


def _compare(url: str, network: FCN8s, side: int, rounds: int) -> dict[str, float]:
    """Medians over rounds in which one answer and one forward pass take turns."""
    picture = random_picture(side)
    text = request_of(picture)
    outputs = Outputs(network.to(memory_format=torch.channels_last))
    pixels = normalise(torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1))[None]

    def ask() -> None:
        requests.post(f"{url}/invocations", data=text, headers=JSON, timeout=60).raise_for_status()

    @torch.inference_mode()
    def forward() -> None:
        outputs(pixels)

    timings: dict[Callable[[], None], list[float]] = {ask: [], forward: []}
    for index in range(rounds + 3):
        for action, seconds in timings.items():
            begin = time.perf_counter()
            action()
            if index >= 3:  # the first are slower on either side
                seconds.append(time.perf_counter() - begin)
    answer, bare = (statistics.median(seconds) for seconds in timings.values())
    return {"forward_ms": 1000 * bare, "answer_ms": 1000 * answer, "added": answer / bare - 1}


@contextmanager
def served(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[tuple[str, int]]:
    """The address at which a command, given a free port, serves; and the identity of its process."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
    try:
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit("serving: error: the server did not start")
            time.sleep(0.2)
        yield url, process.pid
    finally:
        os.killpg(process.pid, 15)
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/ping", timeout=2).ok
    except requests.exceptions.RequestException:
        return False


if __name__ == "__main__":
    main()
