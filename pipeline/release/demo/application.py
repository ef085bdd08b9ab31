"""The page of `gain demo` and the answers to what is dropped on it, as an ASGI application for loopback."""

import base64
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from pipeline.base.errors import PipelineError
from pipeline.data.voc import voc_palette
from pipeline.model.weights import load_weights
from pipeline.release.images import grey_png, palette_png, read_image
from pipeline.release.prediction import Outputs, predict
from pipeline.release.server import Application, Limits
from pipeline.report.figures import model_colours
from pipeline.report.overlays import class_colours, heat, hex_colour
from pipeline.report.page.document import render

HERE = "pipeline.release.demo"
HOSTS = ["127.0.0.1", "localhost"]  # a page elsewhere that has its own name point here gets no answer
ANSWERS = "/answers"
CONTENT = "application/octet-stream"  # of a request; a page elsewhere may not send it without being asked first
MOST_WAITING = 4
MOST_CLASSES = 12  # the most probable, whose attention is sent
SHOWN_SIDE = 640  # pixels of the longer side of masks and maps that are sent, at most


@dataclass(frozen=True)
class _Loaded:
    outputs: Outputs
    class_names: tuple[str, ...]


def create(models: Mapping[str, Path], examples: Sequence[Path]) -> Application:
    """The application.

    Args:
        models: name to safetensors file, shown in this order.
        examples: images to choose from, beside one's own.

    Raises:
        PipelineError: weights are missing or damaged.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = {name: _load(path, device) for name, path in models.items()}
    page = _page(loaded, examples)

    async def show(_: Request) -> Response:
        return HTMLResponse(page)

    async def example(request: Request) -> Response:
        number = int(request.path_params["number"])
        if number >= len(examples):
            return Response("no such image", status_code=404)
        try:
            return Response(examples[number].read_bytes(), media_type="application/octet-stream")
        except OSError as error:
            return Response(f"{examples[number].name}: {error.strerror}", status_code=404)

    async def answer(request: Request) -> Response:
        if request.headers.get("content-type") != CONTENT:
            return JSONResponse({"message": f"send an image as {CONTENT}"}, status_code=415)
        content = await request.body()
        try:
            return JSONResponse(await run_in_threadpool(_answers, loaded, content, device))
        except PipelineError as error:
            return JSONResponse({"message": str(error)}, status_code=400)

    routes = [
        Route("/", show),
        Route("/examples/{number:int}", example),
        Route(ANSWERS, answer, methods=["POST"]),
    ]
    trusted = Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False)
    return Limits(Starlette(routes=routes, middleware=[trusted]), most_waiting=MOST_WAITING, path=ANSWERS)


def _load(path: Path, device: torch.device) -> _Loaded:
    model, class_names = load_weights(path)
    outputs = Outputs(model.to(memory_format=torch.channels_last).to(device).eval())
    side = 64  # the first pass, which is slower than those that follow, is done before anybody waits
    predict(outputs, class_names, np.zeros((side, side, 3), np.uint8), device)
    return _Loaded(outputs, class_names)


def _answers(loaded: Mapping[str, _Loaded], content: bytes, device: torch.device) -> dict[str, Any]:
    """What every model makes of an image file, as JSON.

    Raises:
        PipelineError: `read_image` refuses it.
    """
    image = read_image(content)
    return {
        "width": image.shape[1],
        "height": image.shape[0],
        "image": _jpeg(_reduced(image, Image.Resampling.LANCZOS)),
        "models": {name: _answer(of, image, device) for name, of in loaded.items()},
    }


def _answer(of: _Loaded, image: NDArray[np.uint8], device: torch.device) -> dict[str, Any]:
    began = time.perf_counter()
    found = predict(of.outputs, of.class_names, image, device, MOST_CLASSES)
    seconds = time.perf_counter() - began
    mask = _reduced(found.segmentation, Image.Resampling.NEAREST)
    palette = voc_palette()
    return {
        "seconds": seconds,
        "class_probs": found.class_probs,
        "segmentation": _text(palette_png(mask, palette)),
        "classes": {
            of.class_names[value - 1]: hex_colour(class_colours()[value]) for value in np.unique(mask).tolist() if value
        },
        "attention": {
            name: _text(grey_png(_reduced(pixels, Image.Resampling.BILINEAR)))
            for name, pixels in found.attention.items()
        },
    }


def _page(loaded: Mapping[str, _Loaded], examples: Sequence[Path]) -> str:
    ramp = heat(np.linspace(0, 1, 256)[None])[0].tolist()
    return render(
        (HERE, "demo.html.j2"),
        [(HERE, "demo.css")],
        [(HERE, "demo.js")],
        connect=True,
        models=model_colours(loaded),
        layers={name: of.outputs.model.attention_layer for name, of in loaded.items()},
        examples=[path.stem for path in examples],
        ramp=ramp,
        answers=ANSWERS,
        content=CONTENT,
    )


def _reduced(pixels: NDArray[Any], method: Image.Resampling) -> NDArray[Any]:
    """At most SHOWN_SIDE pixels long; the type is kept."""
    image = Image.fromarray(pixels)
    factor = SHOWN_SIDE / max(image.size)
    if factor >= 1:
        return pixels
    width, height = (max(1, round(side * factor)) for side in image.size)
    return np.asarray(image.resize((width, height), method))


def _jpeg(pixels: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return _text(buffer.getvalue())


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
