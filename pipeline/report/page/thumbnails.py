"""Pictures small enough to be part of a page."""

import base64
import io

from PIL import Image

from pipeline.report.overlays import Picture

LONGER_SIDE = 160  # pixels, at most
QUALITY = 70  # of WebP
EFFORT = 2  # of 0 to 6: half the time of 4, for files a twentieth larger


def data_uri(picture: Picture) -> str:
    """The picture as the address of itself, reduced where it is larger than LONGER_SIDE."""
    image = Image.fromarray(picture)
    image.thumbnail((LONGER_SIDE, LONGER_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=EFFORT)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
