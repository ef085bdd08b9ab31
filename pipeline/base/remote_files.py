"""Files from elsewhere as params.yaml describes them: where they are, how they are known, how large they may be."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from pipeline.base.ranges import Section

CHECKSUM = re.compile(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}")
LONGEST_NAME = 100  # characters, of the name of a checksum
# torchvision's VGG16_Weights.IMAGENET1K_V1. Its import would take seconds, so a test compares the two. torchvision says
# the first eight digits of the checksum, in the file's name; the whole of it is widely published.
PUBLISHED_VGG16: Mapping[str, Any] = {
    "path": None,
    "mirrors": ["https://download.pytorch.org/models/vgg16-397923af.pth"],
    "checksum": "sha256:397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    "max_gigabytes": 0.6,
}


class RemoteFile(Section):
    """A file from elsewhere: where you have it, or which mirrors deliver it, in the order in which they are asked.

    `checksum` is one, or several, each under the name of a version of the file. A mirror that sends more than
    `max_gigabytes` (GB, of 10^9 bytes) is given up.
    """

    path: str | None
    mirrors: list[Annotated[str, Field(pattern=r"^https?://[^/\s]+/\S*$")]]
    checksum: str | dict[str, str] | None
    max_gigabytes: Annotated[float, Field(gt=0.0, le=1000.0)] | None = None

    @property
    def checksums(self) -> dict[str, str]:
        """Each checksum that is accepted, and the name of the version that it belongs to, "" where it has none."""
        if self.checksum is None:
            return {}
        if isinstance(self.checksum, str):
            return {self.checksum: ""}
        return {checksum: name for name, checksum in self.checksum.items()}

    @field_validator("checksum", mode="plain")
    @classmethod
    def _is_one_or_several(cls, value: Any) -> Any:
        several = value if isinstance(value, dict) else {"": value}
        if value is None or (several and all(map(_is_named_checksum, several.items()))):
            return value
        raise ValueError(
            "a checksum is md5: and 32, or sha256: and 64 hexadecimal digits in lower case; of several, each has a name"
        )

    @model_validator(mode="after")
    def _can_be_had_and_checked(self) -> "RemoteFile":
        if self.path is None and not self.mirrors:
            raise ValueError("name the path of the file, or mirrors to fetch it from")
        if self.path is None and self.checksum is None:
            raise ValueError("a file that is fetched needs a checksum, md5:HEX or sha256:HEX")
        if self.path is None and self.max_gigabytes is None:
            raise ValueError(
                "a file that is fetched needs max_gigabytes, the most that a mirror may send; give its size, rounded up"
            )
        return self


def _is_named_checksum(item: tuple[Any, Any]) -> bool:
    name, checksum = item
    printable = isinstance(name, str) and name.isprintable() and len(name) <= LONGEST_NAME
    return printable and isinstance(checksum, str) and CHECKSUM.fullmatch(checksum) is not None
