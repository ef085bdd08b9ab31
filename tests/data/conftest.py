"""The small VOC-layout folder and the data set that these tests share."""

from small_folders import voc_root  # noqa: F401 (a fixture)
from small_samples import make  # noqa: F401 (a fixture)
