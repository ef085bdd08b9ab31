"""The network as an ONNX graph with attention in it: it runs without autograd and without PyTorch."""

from pathlib import Path

import torch

from pipeline.base.errors import PipelineError
from pipeline.base.files import atomic_file
from pipeline.data.images import RGB_MEAN, RGB_STD
from pipeline.model.weights import load_weights
from pipeline.release.prediction import Outputs

SMALLEST_SIDE = 32  # pixels; the output of pool5 is smaller by this factor, and needs one cell
OUTPUT_NAMES = ["class_probs", "seg_logits", "attention"]


def export_onnx(weights: Path, target: Path) -> None:
    """Write the network in `weights` to `target`: input `image` (B, 3, H, W) normalised RGB, `OUTPUT_NAMES` out.

    Batch size, height and width are free, sides at least `SMALLEST_SIDE`; see `prediction.Outputs` for the shapes and
    ranges of the outputs. The model's metadata has the class names, and the mean and standard deviation (of RGB in
    [0, 1]) by which an image is normalised, and `scale`, by which it is resized before: the graph leaves that, and the
    way back to the size of the image, to who runs it (gain/view.py says how).

    Raises:
        PipelineError: the weights cannot be read, onnxscript is not installed, or `target` cannot be written.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise PipelineError("the export needs onnxscript: pip install onnxscript") from None
    model, class_names = load_weights(weights)
    sizes = {0: torch.export.Dim("batch", min=1)}
    sizes |= {axis: torch.export.Dim(name, min=SMALLEST_SIDE) for axis, name in ((2, "height"), (3, "width"))}
    program = torch.onnx.export(
        Outputs(model).eval(),
        (torch.zeros(2, 3, 96, 112),),
        input_names=["image"],
        output_names=OUTPUT_NAMES,
        dynamic_shapes={"image": sizes},
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props["class_names"] = ",".join(class_names)
    for name, values in {"mean": RGB_MEAN, "std": RGB_STD, "scale": (model.scale,)}.items():
        program.model.metadata_props[name] = ",".join(map(str, values))
    try:
        with atomic_file(target) as partial:
            program.save(partial)
    except OSError as error:
        raise PipelineError(f"{target}: cannot be written ({error.strerror})") from error
