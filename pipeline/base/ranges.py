"""What every section of params.yaml stands on: the strict base class, and the ranges that several sections share.

Every number has an upper end, far above what makes sense: a slip of the finger is found at once, not when memory, disk
or a day is spent.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]  # of images, where none is allowed
PositiveCount = Annotated[int, Field(ge=1, le=1_000_000)]
BatchSize = Annotated[int, Field(ge=1, le=65_536)]
Channels = Annotated[int, Field(ge=1, le=65_536)]
Weight = Annotated[float, Field(ge=0.0, le=1.0e6)]  # of a loss, or a factor
PositiveFactor = Annotated[float, Field(gt=0.0, le=1.0e6)]


class Section(BaseModel):
    """Base of every params.yaml section: immutable, no unknown keys, no silent type conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
