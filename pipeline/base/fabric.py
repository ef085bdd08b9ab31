"""Lightning's Fabric, imported without torchmetrics.

Lightning asks torchmetrics for its version by importing it, and with it SciPy, Matplotlib and torchvision's models: a
second of every training where the packages of our tests are installed. Nothing that is used here needs it.
"""

import sys

_hidden = "torchmetrics" not in sys.modules
if _hidden:
    sys.modules["torchmetrics"] = None  # type: ignore[assignment]  # as if it was not installed
try:
    from lightning_fabric import Fabric as Fabric
finally:
    if _hidden:
        del sys.modules["torchmetrics"]
