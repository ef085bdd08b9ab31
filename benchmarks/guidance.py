"""What attention costs: maps of every class beside the forward pass and the peers, a GAIN step beside a plain one.

`python -m benchmarks.guidance` takes both sides of each ratio in turn, medians of several rounds, on the network at
full width with images of 320 x 320 and 20 classes; prints a table and writes benchmarks/guidance.json.

The reference's step is written here after its description: batch 1, one pass each for segmentation (padding 100),
classification and the masked image (padding 1), Grad-CAM by a backward pass through the trunk per class.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import captum.attr
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from pipeline.data.loading import Sample
from pipeline.devices import choose_device
from pipeline.files import write_json
from pipeline.gain.attention import GuidedNetwork, attention_to_image, class_attention, normalise_attention, soft_mask
from pipeline.gain.losses import Criterion, classification_loss, segmentation_loss
from pipeline.model.fcn8s import AttentionGrid, FCN8s

CLASSES, SIDE, BATCH = 20, 320, 2
LABELS = (1, 2)  # classes of the images of a batch: 1.5 an image
WARM_UP = 1
MAP_ROUNDS, PEER_ROUNDS, STEP_ROUNDS = 5, 1, 3
Timings = dict[str, float]  # what to median seconds


class ClassLogits(nn.Module):
    """The classifier alone, as the peers want to see a network."""

    def __init__(self, model: FCN8s) -> None:
        super().__init__()
        self.model = model
        self.last_convolution = nn.Identity()  # a module whose output is conv5_3 after ReLU

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) to logits (B, C)."""
        return self.model.classify(self.last_convolution(self.model.features(image).conv5_3))


def main() -> None:
    """Measure and report."""
    torch.manual_seed(0)
    device = choose_device("auto", "auto")
    precisions = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if device.precision == "bf16-mixed" else {})
    maps, steps = {}, {}
    for name, dtype in precisions.items():
        maps[name] = _time(_map_sides(device.torch_device, dtype), MAP_ROUNDS, device.torch_device)
        steps[name] = _time(_step_sides(device.torch_device, dtype), STEP_ROUNDS, device.torch_device)
    peers = _time(_peer_sides(device.torch_device), PEER_ROUNDS, device.torch_device)
    ratios = _ratios(maps, steps, peers)
    result = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "device": device.reason,
        "input": f"{BATCH} images of {SIDE} x {SIDE}, {CLASSES} classes, {sum(LABELS) / BATCH} labels an image",
        "seconds": {"maps": maps, "peers": peers, "steps": steps},
        "ratios": ratios,
    }
    write_json(Path(__file__).with_suffix(".json"), result)
    print(f"{result['input']}; {device.reason}\n\n| what | ratio |\n|---|---|")
    for what, ratio in ratios.items():
        print(f"| {what} | {ratio:.3g} |")


def _ratios(maps: Mapping[str, Timings], steps: Mapping[str, Timings], peers: Timings) -> dict[str, float]:
    ratios: dict[str, float] = {}
    best = list(maps)[-1]
    for name in maps:
        ratios[f"forward pass with all maps / forward pass, {name}"] = maps[name]["with maps"] / maps[name]["forward"]
    for peer, seconds in peers.items():
        ratios[f"{peer} / forward pass with all maps, both fp32"] = seconds / maps["fp32"]["with maps"]
    if best != "fp32":
        ratios[f"pytorch-grad-cam, fp32 / forward pass with all maps, {best}"] = (
            peers["pytorch-grad-cam"] / maps[best]["with maps"]
        )
        ratios[f"plain step, fp32 / plain step, {best}"] = steps["fp32"]["plain"] / steps[best]["plain"]
        ratios[f"GAIN step, fp32 / GAIN step, {best}"] = steps["fp32"]["gain"] / steps[best]["gain"]
    for name, seconds in steps.items():
        ratios[f"GAIN step / plain step, {name}"] = seconds["gain"] / seconds["plain"]
        ratios[f"GAIN step / reference's step, {name}"] = seconds["gain"] / seconds["reference"]
        ratios[f"GAIN step with masks / GAIN step, {name}"] = seconds["gain and masks"] / seconds["gain"]
        ratios[f"plain step, padding 100 / padding 1, {name}"] = seconds["plain, padding 100"] / seconds["plain"]
    return ratios


def _time(sides: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> Timings:
    """Medians; in each round every side has its turn."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(WARM_UP + rounds):
        for name, side in sides.items():
            _synchronise(device)
            begin = time.perf_counter()
            side()
            _synchronise(device)
            if index >= WARM_UP:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _network(device: torch.device, padding: int = 1) -> FCN8s:
    model = FCN8s(CLASSES, dropout=0.0, padding=padding)
    return model.to(device).to(memory_format=torch.channels_last)


def _image(device: torch.device) -> Tensor:
    return torch.randn(BATCH, 3, SIDE, SIDE, device=device).contiguous(memory_format=torch.channels_last)


def _batch(device: torch.device) -> Sample:
    target = torch.randint(0, CLASSES + 1, (BATCH, SIDE // 16, SIDE // 16), device=device)
    target = target.repeat_interleave(16, dim=1).repeat_interleave(16, dim=2)
    labels = torch.zeros(BATCH, CLASSES, device=device)
    for index, count in enumerate(LABELS):
        labels[index, :count] = 1.0
    return Sample(_image(device), target, target.to(torch.uint8), labels, torch.arange(BATCH))


def _map_sides(device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    model, image = _network(device).eval(), _image(device)

    @torch.inference_mode()
    def forward(with_maps: bool) -> object:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            features = model.features(image)
            outputs = model.segment(features, (SIDE, SIDE)), model.classify(features.conv5_3)
            return outputs, class_attention(model, features.conv5_3) if with_maps else None

    return {"forward": lambda: forward(False), "with maps": lambda: forward(True)}


def _peer_sides(device: torch.device) -> dict[str, Callable[[], object]]:
    network, image = ClassLogits(_network(device)).eval(), _image(device)

    def pytorch_grad_cam() -> None:
        with GradCAM(network, [network.last_convolution]) as cam:
            for index in range(CLASSES):
                cam(image, [ClassifierOutputTarget(index)] * BATCH)

    def captum_grad_cam() -> None:
        cam = captum.attr.LayerGradCam(network, network.last_convolution)
        for index in range(CLASSES):
            cam.attribute(image, target=index, relu_attributions=True)

    return {"pytorch-grad-cam": pytorch_grad_cam, "captum": captum_grad_cam}


def _step_sides(device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    batch = _batch(device)
    model = _network(device).train()
    network = GuidedNetwork(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9, momentum=0.9)
    padded = _network(device, padding=100).train()
    padded_optimizer = torch.optim.SGD(padded.parameters(), lr=1e-9, momentum=0.9)
    guided = {"segmentation": 1.0, "classification": 1.0, "attention_mining": 1.0}
    reference = _Reference(padded, padded_optimizer)

    def step(net: GuidedNetwork, optimiser: torch.optim.Optimizer, weights: Mapping[str, float]) -> None:
        criterion = Criterion(weights, net.model.attention_grid)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output = net(batch.image, batch.image_labels, criterion.needs)
            total = criterion.total(criterion(output, batch), 1.0)
        total.backward()
        optimiser.step()
        optimiser.zero_grad()

    def reference_step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            for index in range(BATCH):
                reference.step(batch, index)

    return {
        "plain": lambda: step(network, optimizer, {"segmentation": 1.0}),
        "gain": lambda: step(network, optimizer, guided),
        "gain and masks": lambda: step(network, optimizer, guided | {"external_supervision": 1.0}),
        "plain, padding 100": lambda: step(GuidedNetwork(padded), padded_optimizer, {"segmentation": 1.0}),
        "reference": reference_step,
    }


class _Reference:
    """One image at a time, three passes through the trunk, and one backward pass through it per class for Grad-CAM."""

    def __init__(self, model: FCN8s, optimizer: torch.optim.Optimizer) -> None:
        self.model = model
        self.optimizer = optimizer

    def step(self, batch: Sample, index: int) -> None:
        """A step on one image of the batch."""
        image, labels = batch.image[index : index + 1], batch.image_labels[index : index + 1]
        features = self._features(image, padding=100)
        loss = segmentation_loss(self.model.segment(features, (SIDE, SIDE)), batch.target[index : index + 1])
        conv5_3 = self._features(image, padding=1).conv5_3
        class_logits = self.model.classify(conv5_3)
        loss = loss + classification_loss(class_logits, labels)
        present = labels[0].nonzero()[:, 0].tolist()
        trunk = [p for p in self.model.trunk.parameters() if p.requires_grad]
        for label in present:
            # A hook sees the gradient at conv5_3 while the whole trunk is gone through for its sake.
            gradient, *_ = torch.autograd.grad(class_logits[0, label], [conv5_3, *trunk], retain_graph=True)
            weights = gradient.mean(dim=(2, 3), keepdim=True)
            maps, _ = normalise_attention((weights * conv5_3.float()).sum(dim=1).relu())
            mask = soft_mask(attention_to_image(maps, (SIDE, SIDE), AttentionGrid(16, 1)), threshold=0.5, slope=10.0)
            masked = self._features(image * (1.0 - mask[:, None]), padding=1)
            loss = loss + self.model.classify(masked.conv5_3)[0, label].sigmoid() / len(present)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _features(self, image: Tensor, *, padding: int) -> Any:
        self.model.trunk.padding = padding
        try:
            return self.model.features(image)
        finally:
            self.model.trunk.padding = 100


if __name__ == "__main__":
    main()
