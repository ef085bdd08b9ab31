"""A template, its styles and its script put together as one HTML file that loads nothing and runs nothing else."""

import base64
import hashlib
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report.overlays import heat, hex_colour

HEAT_STEPS = 64  # of the colour bar
BASE_STYLE = ("pipeline.report.page", "base.css")
Part = tuple[str, str]  # package, file


def render(template: Part, styles: Iterable[Part], scripts: Iterable[Part], *, connect: bool = False, **of: Any) -> str:
    """HTML text.

    A content security policy lets the browser run this script and these styles, by their digests, and show pictures
    that are part of the page; class names and the like are escaped.

    Args:
        connect: let the script speak to the server that the page is from.
        of: what the template is filled with.
    """
    style, script = ("\n".join(_text(*part) for part in parts) for parts in ([BASE_STYLE, *styles], scripts))
    policy = [
        "default-src 'none'",
        "img-src data: blob:",
        f"style-src '{_digest(style)}'",
        f"script-src '{_digest(script)}'",
        "base-uri 'none'",
        "form-action 'none'",
        *(["connect-src 'self'"] if connect else []),
    ]
    page = _environment().get_template("/".join(template), globals={"heat": _heat()})
    return page.render(policy=Markup("; ".join(policy)), style=Markup(style), script=Markup(script), **of)


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _heat() -> list[str]:
    """Of the colour bar of attention, from none to the maximum."""
    return [hex_colour(colour) for colour in heat(np.linspace(0, 1, HEAT_STEPS)[None])[0]]


@cache
def _environment() -> Environment:
    return Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        loader=FunctionLoader(lambda name: _text(*name.split("/"))),
    )


@cache
def _text(package: str, file: str) -> str:
    return resources.files(package).joinpath(file).read_text(encoding="utf-8")
