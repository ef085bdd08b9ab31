"""What attention costs: maps of every class beside the forward pass and the peers, a GAIN step beside a plain one.

`python -m benchmarks.guidance` takes both sides of each ratio in turn, medians of several rounds, on the network at
full width with images of 320 x 320 and 20 classes; prints a table and writes benchmarks/guidance.json, or
guidance-cuda.json on a GPU. On two cores it takes a quarter of an hour, on an H100 three minutes.

The reference's step is written here after its description: batch 1, one pass each for segmentation (padding 100),
classification and the masked image (padding 1), Grad-CAM by a backward pass through the trunk per class.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.machine import machine
from pipeline.base.files import write_json
from pipeline.base.params import load_params
from pipeline.data.samples import Sample
from pipeline.gain.attention import attention_to_image, class_attention, normalise_attention, soft_mask
from pipeline.gain.losses import Criterion, classification_loss, segmentation_loss
from pipeline.gain.network import GuidedNetwork, class_pairs
from pipeline.model.fcn8s import AttentionGrid, FCN8s
from pipeline.tracking.throughput import TrainingFlops, peak_flops, training_flops
from pipeline.training.devices import choose_device, make_deterministic

CLASSES, SIDE = 20, 320
LABELS = (1, 2)  # classes of the images of a batch: 1.5 an image
GUIDED = {"segmentation": 1.0, "classification": 1.0, "attention_mining": 1.0}
Timings = dict[str, float]  # what to median seconds


class Effort(NamedTuple):
    """What one kind of device is given to do."""

    batch: int  # images; enough to keep the device busy
    warm_up: int  # rounds that do not count
    map_rounds: int
    step_rounds: int
    peer_rounds: int


FULL_WIDTH = load_params(profile="voc2012").model
ATTENTION = load_params().attention
EFFORTS = {"cpu": Effort(2, 1, 7, 5, 1), "cuda": Effort(16, 3, 30, 20, 3)}


class ClassLogits(nn.Module):
    """The classifier alone, as the peers want to see a network."""

    def __init__(self, model: FCN8s) -> None:
        super().__init__()
        self.model = model
        self.last_convolution = nn.Identity()  # a module whose output is conv5_3 after ReLU

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) to logits (B, C)."""
        return self.model.classify(self.last_convolution(self.model.features(image).conv5_3))


class WholeNetwork(ClassLogits):
    """The same, with the segmentation that FCN8s computes besides; what hooks find when they are put on it as it is."""

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) to logits (B, C)."""
        features = self.model.features(image)
        self.model.segment(features, (image.shape[2], image.shape[3]))
        return self.model.classify(self.last_convolution(features.conv5_3))


def main() -> None:
    """Measure and report."""
    torch.manual_seed(0)
    chosen = choose_device("auto", "auto")
    device = chosen.torch_device
    make_deterministic(chosen)  # as every training and evaluation does
    batch, warm_up, map_rounds, step_rounds, peer_rounds = EFFORTS[device.type]
    precisions = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if chosen.precision == "bf16-mixed" else {})
    maps, steps, utilisation = {}, {}, {}
    for name, dtype in precisions.items():
        maps[name] = _time(_map_sides(device, dtype, batch), device, map_rounds, warm_up)
        # Compiling takes minutes a precision, and longer than that on a CPU.
        compiled = device.type == "cuda" and name == list(precisions)[-1]
        steps[name] = _time(_step_sides(device, dtype, batch, compiled=compiled), device, step_rounds, warm_up)
        peak = peak_flops(device, "bf16-mixed" if name == "bf16" else "32-true")
        flops = _step_flops(device, batch)
        utilisation[name] = {side: count / steps[name][side] / peak.flops for side, count in flops.items()}
    peers = _time(_peer_sides(device, batch), device, peer_rounds, warm_up=int(device.type == "cuda"))
    ratios = _ratios(maps, steps, peers)
    result = {
        "machine": machine(),
        "device": chosen.reason,
        "input": f"{batch} images of {SIDE} x {SIDE}, {CLASSES} classes, {sum(LABELS) / len(LABELS)} labels an image",
        "seconds": {"maps": maps, "peers": peers, "steps": steps},
        "ratios": ratios,
        "mfu": utilisation,
    }
    write_json(result_file(__file__, device), result)
    print(f"{result['input']}; {chosen.reason}\n\n| what | ratio |\n|---|---|")
    for what, ratio in ratios.items():
        print(f"| {what} | {ratio:.3g} |")
    print("\n| share of peak FLOP/s | plain | gain |\n|---|---|---|")
    for name, shares in utilisation.items():
        print(f"| {name} | {shares['plain']:.2f} | {shares['gain']:.2f} |")


def result_file(script: str, device: torch.device) -> Path:
    """Beside the script, one for CPUs and one for GPUs."""
    path = Path(script).with_suffix(".json")
    return path if device.type == "cpu" else path.with_stem(f"{path.stem}-{device.type}")


def _ratios(maps: Mapping[str, Timings], steps: Mapping[str, Timings], peers: Timings) -> dict[str, float]:
    ratios: dict[str, float] = {}
    best = list(maps)[-1]
    for name, seconds in maps.items():
        ratios[f"forward pass with all maps / forward pass, {name}"] = seconds["with maps"] / seconds["forward"]
        by_autograd = seconds["maps by autograd"] / seconds["maps alone"]
        ratios[f"autograd at conv5_3 per class / all maps with the pass that they need, {name}"] = by_autograd
    for peer, alone in peers.items():
        for name in maps:
            ratios[f"{peer}, fp32 / all maps with the pass that they need, {name}"] = alone / maps[name]["maps alone"]
    if best != "fp32":
        ratios[f"plain step, fp32 / plain step, {best}"] = steps["fp32"]["plain"] / steps[best]["plain"]
        ratios[f"GAIN step, fp32 / GAIN step, {best}"] = steps["fp32"]["gain"] / steps[best]["gain"]
    for name, seconds in steps.items():
        ratios[f"GAIN step / plain step, {name}"] = seconds["gain"] / seconds["plain"]
        ratios[f"GAIN step, masked pass at full resolution / plain step, {name}"] = (
            seconds["gain, full resolution"] / seconds["plain"]
        )
        ratios[f"GAIN step, attention_only at full resolution / plain step, {name}"] = (
            seconds["gain, attention only"] / seconds["plain"]
        )
        ratios[f"GAIN step / reference's step, {name}"] = seconds["gain"] / seconds["reference"]
        ratios[f"GAIN step with L_e / GAIN step, {name}"] = seconds["gain and masks"] / seconds["gain"]
        ratios[f"plain step, padding 100 / padding 1, {name}"] = seconds["plain, padding 100"] / seconds["plain"]
        ratios[f"plain step, activations recomputed / plain step, {name}"] = (
            seconds["plain, recomputed"] / seconds["plain"]
        )
        for side in ("plain", "gain"):
            if f"{side}, compiled" in seconds:
                ratios[f"{side} step, compiled / as written, {name}"] = seconds[f"{side}, compiled"] / seconds[side]
    return ratios


def _time(sides: Mapping[str, Callable[[], object]], device: torch.device, rounds: int, warm_up: int) -> Timings:
    """Medians; in each round every side has its turn."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(warm_up + rounds):
        for name, side in sides.items():
            _synchronise(device)
            begin = time.perf_counter()
            side()
            _synchronise(device)
            if index >= warm_up:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def network(device: torch.device, padding: int = 1) -> FCN8s:
    """At full width, channels last."""
    model = FCN8s(CLASSES, FULL_WIDTH.model_copy(update={"dropout": 0.0, "padding": padding}))
    return model.to(device).to(memory_format=torch.channels_last)


def _image(device: torch.device, batch: int) -> Tensor:
    return torch.randn(batch, 3, SIDE, SIDE, device=device).contiguous(memory_format=torch.channels_last)


def sample(device: torch.device, batch: int, side: int = SIDE) -> Sample:
    """A batch whose images have one and two classes in turn, 20 at most."""
    target = torch.randint(0, CLASSES + 1, (batch, side // 16, side // 16), device=device)
    target = target.repeat_interleave(16, dim=1).repeat_interleave(16, dim=2)
    labels = torch.zeros(batch, CLASSES)
    for index in range(batch):
        labels[index, : LABELS[index % len(LABELS)]] = 1.0
    image = torch.randn(batch, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    return Sample(image, target, target.to(torch.uint8), labels.to(device), torch.arange(batch))


def _map_sides(device: torch.device, dtype: torch.dtype, batch: int) -> dict[str, Callable[[], object]]:
    model, image = network(device).eval(), _image(device, batch)

    @torch.inference_mode()
    def forward(segmentation: bool, maps: bool) -> object:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            features = model.features(image)
            seg_logits = model.segment(features, (SIDE, SIDE)) if segmentation else None
            attention = class_attention(model, features.conv5_3) if maps else None
            return seg_logits, model.classify(features.conv5_3), attention

    def by_autograd() -> None:
        """Grad-CAM as a careful person writes it: the trunk once without a gradient, then a backward pass per class
        from its logit to conv5_3.
        """
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            with torch.no_grad():
                conv5_3 = model.features(image).conv5_3
            conv5_3.requires_grad_()
            logits = model.classify(conv5_3)
            for index in range(CLASSES):
                (gradient,) = torch.autograd.grad(logits[:, index].sum(), conv5_3, retain_graph=True)
                (gradient.mean(dim=(2, 3), keepdim=True) * conv5_3).sum(dim=1).relu()

    return {
        "forward": lambda: forward(True, False),
        "with maps": lambda: forward(True, True),
        "maps alone": lambda: forward(False, True),
        "maps by autograd": by_autograd,
    }


def _peer_sides(device: torch.device, batch: int) -> dict[str, Callable[[], object]]:
    if find_spec("captum") is None or find_spec("pytorch_grad_cam") is None:
        print("captum and grad-cam are not installed, so they are left out", flush=True)
        return {}
    # Imported here: their imports would count as memory of a step.
    import captum.attr
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, image = network(device), _image(device, batch)

    def pytorch_grad_cam(network: ClassLogits) -> None:
        with GradCAM(network, [network.last_convolution]) as cam:
            for index in range(CLASSES):
                cam(image, [ClassifierOutputTarget(index)] * batch)

    def captum_grad_cam(network: ClassLogits) -> None:
        cam = captum.attr.LayerGradCam(network, network.last_convolution)
        for index in range(CLASSES):
            cam.attribute(image, target=index, relu_attributions=True)

    whole, without = WholeNetwork(model).eval(), ClassLogits(model).eval()
    return {
        "pytorch-grad-cam on the network": lambda: pytorch_grad_cam(whole),
        "pytorch-grad-cam on the network without its decoder": lambda: pytorch_grad_cam(without),
        "captum on the network": lambda: captum_grad_cam(whole),
        "captum on the network without its decoder": lambda: captum_grad_cam(without),
    }


def guided(model: FCN8s, **options: Any) -> GuidedNetwork:
    """As the profiles configure it."""
    return GuidedNetwork(model, ATTENTION.model_copy(update=options))


def step_of(network: GuidedNetwork, optimizer: Optimizer, batch: Sample, weights: Mapping[str, float]) -> None:
    """Forward, backward and update, with the losses that `weights` name."""
    criterion = Criterion(weights, network.model.attention_grid, ATTENTION)
    pairs = class_pairs(batch.image_labels, 4)
    total = criterion.total(criterion(network(batch.image, pairs, criterion.needs), batch), 1.0)
    total.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()


def momentum_sgd(model: FCN8s) -> Optimizer:
    """As FCN8s was trained, at a rate that leaves the weights where they are."""
    return torch.optim.SGD(model.parameters(), lr=1e-9, momentum=0.9)


def _step_sides(
    device: torch.device, dtype: torch.dtype, num_images: int, *, compiled: bool
) -> dict[str, Callable[[], object]]:
    batch, model, padded = sample(device, num_images), network(device).train(), network(device, padding=100).train()
    optimizer, padded_optimizer = momentum_sgd(model), momentum_sgd(padded)
    reference = Reference(padded, padded_optimizer)
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    def side(weights: Mapping[str, float], *, compiled: bool = False, **options: Any) -> Callable[[], None]:
        masked = guided(model, **options)
        if compiled:
            masked.compile()

        def step() -> None:
            with autocast:
                step_of(masked, optimizer, batch, weights)

        return step

    def padded_step() -> None:
        with autocast:
            step_of(guided(padded), padded_optimizer, batch, {"segmentation": 1.0})

    def recomputed() -> None:
        model.trunk.checkpoint_activations = True
        with autocast:
            step_of(guided(model), optimizer, batch, {"segmentation": 1.0})
        model.trunk.checkpoint_activations = False

    def reference_step() -> None:
        with autocast:
            for index in range(num_images):
                reference.step(batch, index)

    sides: dict[str, Callable[[], object]] = {
        "plain": side({"segmentation": 1.0}),
        "gain": side(GUIDED),
        "gain and masks": side(GUIDED | {"external_supervision": 1.0}),
        "gain, full resolution": side(GUIDED, masked_stride=1),
        "gain, attention only": side(GUIDED, masked_stride=1, masked_gradient="attention_only"),
        "plain, padding 100": padded_step,
        "plain, recomputed": recomputed,
        "reference": reference_step,
    }
    if compiled:
        sides["plain, compiled"] = side({"segmentation": 1.0}, compiled=True)
        sides["gain, compiled"] = side(GUIDED, compiled=True)
    return sides


def _step_flops(device: torch.device, batch: int) -> dict[str, float]:
    model = guided(network(device))

    def count(weights: Mapping[str, float]) -> float:
        criterion = Criterion(weights, model.model.attention_grid, ATTENTION)
        flops: TrainingFlops = training_flops(model, criterion, (SIDE, SIDE))
        return float(batch * (flops.per_image + sum(LABELS) / len(LABELS) * flops.per_pair))

    return {"plain": count({"segmentation": 1.0}), "gain": count(GUIDED)}


class Reference:
    """One image at a time, three passes through the trunk, and one backward pass through it per class for Grad-CAM."""

    def __init__(self, model: FCN8s, optimizer: Optimizer) -> None:
        self.model = model
        self.optimizer = optimizer

    def step(self, batch: Sample, index: int) -> None:
        """A step on one image of the batch."""
        image, labels = batch.image[index : index + 1], batch.image_labels[index : index + 1]
        features = self._features(image, padding=100)
        size = (image.shape[2], image.shape[3])
        loss = segmentation_loss(self.model.segment(features, size), batch.target[index : index + 1])
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
            mask = soft_mask(attention_to_image(maps, size, AttentionGrid(16, 1)), threshold=0.5, slope=10.0)
            masked = self._features(image * (1.0 - mask[:, None]), padding=1)
            loss = loss + self.model.classify(masked.conv5_3)[0, label].sigmoid() / len(present)
        loss.backward()  # type: ignore[no-untyped-call]
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
