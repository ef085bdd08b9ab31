"""The small VOC-layout folder that these tests share."""

from small_folders import voc_root  # noqa: F401 (a fixture)
