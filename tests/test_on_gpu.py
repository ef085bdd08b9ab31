"""What only a GPU can show; `make test` skips this file on machines without one, and the rest of it runs anywhere."""

import copy
import math
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from sections import attention_section, training_section
from tasks import AfterEpoch, task_of
from torch.utils.data import Dataset

from pipeline.data.loaders import evaluation_loader, training_loader
from pipeline.data.samples import Sample
from pipeline.evaluation.passes import Scoring, evaluate, validation_scores
from pipeline.gain.attention import class_attention
from pipeline.gain.losses import Criterion
from pipeline.gain.network import GuidedNetwork, class_pairs
from pipeline.model.decoder import upsample
from pipeline.model.fcn8s import FCN8s
from pipeline.release.prediction import Outputs, predict
from pipeline.tracking.throughput import peak_flops, training_flops
from pipeline.training.checkpoints import CheckpointFile
from pipeline.training.devices import choose_device
from pipeline.training.loop import fit
from pipeline.training.optimization import build_optimizer, freeze, training_mode
from pipeline.training.state import History, Row
from pipeline.training.step import add_gradients
from pipeline.training.watchers import Work

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
WEIGHTS = {"segmentation": 1.0, "classification": 1.0, "attention_mining": 0.5, "external_supervision": 2.0}
OPTIONS = training_section(batch_size=4, learning_rate=3.0e-3, weight_decay=0.01)
SCORING = Scoring(attention_threshold=0.2, mask_threshold=0.5, mask_slope=10.0)


class Stripes(Dataset[Sample]):
    """Images of a bright stripe whose place is its class."""

    rows = [SimpleNamespace(height=64, width=64)] * 24

    def set_epoch(self, epoch: int) -> None:
        """Nothing here is drawn at random."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        label = index % 3
        target = torch.zeros(64, 64, dtype=torch.int64)
        target[20 * label : 20 * label + 18, 8:56] = label + 1
        image = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(index)) * 0.2 + target
        return Sample(image, target, target.to(torch.uint8), torch.eye(3)[label], torch.tensor(index))


@pytest.fixture
def exact_convolutions():
    """Without TensorFloat-32, whose products have ten bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def on(device: str, sample: Sample) -> Sample:
    return Sample(*(value.to(device) for value in sample))


def gradients(network: GuidedNetwork, sample: Sample, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Losses as loss/NAME and gradients by parameter, in float64 on the host."""
    network.zero_grad()
    criterion = Criterion(WEIGHTS, network.model.attention_grid, attention_section())
    device = next(network.parameters()).device.type
    pairs = class_pairs(sample.image_labels.cpu(), 4)
    with torch.autocast(device, dtype, enabled=dtype is not None):
        output = network(sample.image, type(pairs)(*(index.to(device) for index in pairs)), criterion.needs)
        losses = criterion(output, sample)
    criterion.total(losses, 1.0).backward()
    found = {name: p.grad for name, p in network.model.named_parameters() if p.grad is not None}
    found |= {f"loss/{name}": loss.detach() for name, loss in losses.items()}
    return {name: value.double().cpu() for name, value in found.items()}


def worst(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Largest error, relative to the norm of what was expected."""
    assert found.keys() == expected.keys()
    return max(float((found[k] - v).norm() / v.norm().clamp(min=1e-9)) for k, v in expected.items())


def test_auto_prefers_cuda_in_bfloat16_where_the_hardware_has_it():
    device = choose_device("auto", "auto")
    assert device.accelerator == "cuda"
    assert device.precision == ("bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true")
    assert torch.cuda.get_device_name() in device.reason


@pytest.mark.parametrize("masked_gradient", ["shared", "attention_only"])
@pytest.mark.parametrize("checkpoint_activations", [False, True])
def test_step_is_that_of_the_cpu(tiny_model, scene, exact_convolutions, masked_gradient, checkpoint_activations):
    model = tiny_model()
    network = GuidedNetwork(
        model, attention_section(second_order=True, masked_stride=2, masked_gradient=masked_gradient)
    )
    expected = gradients(copy.deepcopy(network), scene)
    model.trunk.checkpoint_activations = checkpoint_activations
    found = gradients(network.cuda().to(memory_format=torch.channels_last), on("cuda", scene))
    assert worst(found, expected) < 1e-3


def test_maps_of_a_bfloat16_pass_are_those_of_float32(tiny_model, scene):
    model, image = tiny_model(width=0.25).cuda(), scene.image.cuda()
    maps = []
    for enabled in (False, True):
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=enabled):
            maps.append(class_attention(model, model.features(image).conv5_3))
    assert maps[1].dtype == torch.float32
    assert float((maps[1] - maps[0]).norm() / maps[0].norm()) < 0.05


def test_upsampling_is_that_of_the_cpu_and_repeats():
    scores, gradient = torch.randn(2, 21, 10, 9), torch.randn(2, 21, 80, 72)
    found = []
    for device in ("cpu", "cuda", "cuda"):
        at = scores.detach().to(device).requires_grad_()
        upsampled = upsample(at, 8)
        upsampled.backward(gradient.to(device))
        found.append((upsampled.detach().cpu(), at.grad.cpu()))
    for on_cpu, once, again in zip(*found, strict=True):
        assert torch.allclose(once, on_cpu, rtol=1e-4, atol=1e-4)
        assert torch.equal(once, again)


@pytest.mark.filterwarnings("ignore")  # of torch's own code generator, about itself and about exact products
def test_compiled_step_is_the_plain_step(tiny_model, scene, exact_convolutions):
    network, sample = (
        GuidedNetwork(tiny_model().cuda(), attention_section(second_order=True, masked_stride=2)),
        on("cuda", scene),
    )
    compiled = torch.compile(network)
    assert worst(gradients(compiled, sample), gradients(network, sample)) < 1e-3
    fewer = sample._replace(image_labels=sample.image_labels * torch.tensor([1.0, 0.0, 0.0], device="cuda"))
    assert worst(gradients(compiled, fewer), gradients(network, fewer)) < 1e-3


def test_recomputed_activations_need_less_memory(tiny_model, scene):
    peaks = []
    for checkpoint_activations in (False, True):
        model = tiny_model(width=0.5).cuda()
        model.trunk.checkpoint_activations = checkpoint_activations
        sample = on("cuda", scene._replace(image=F.interpolate(scene.image, scale_factor=8)))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model.features(sample.image).conv5_3.sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 0.7 * peaks[0]


@pytest.mark.filterwarnings("ignore:Detected call of")  # float16 leaves out the steps whose gradients overflow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_training_learns_and_resumes(tiny_model, tmp_path, precision):
    """Not to the same bytes: some kernels add in the order of their threads."""
    start = tiny_model(width=0.25, head_channels=32).state_dict()
    recorded: list[Row] = []

    def train(folder: Path, stop_after: int | None = None) -> History:
        model = tiny_model(width=0.25, head_channels=32)
        model.load_state_dict(start)
        data = Stripes()
        fabric = Fabric(accelerator="cuda", devices=1, precision=precision)
        validation = evaluation_loader(data, batch_size=8, num_workers=0)

        def validate(network: FCN8s) -> dict[str, float]:
            scores = validation_scores(evaluate(network, validation, fabric.device, SCORING))
            return {f"val/{name}": value for name, value in scores.items()}

        def on_epoch(epoch: int, history: History, _: Work) -> None:
            if epoch == stop_after:
                recorded.extend(history.rows)
                raise KeyboardInterrupt

        return fit(
            task_of(model, training_loader(data, batch_size=4, seed=0, num_workers=2), OPTIONS, WEIGHTS,
                    attention=attention_section(masked_stride=2), fabric=fabric, name=precision),
            CheckpointFile(folder, "fit"),
            validate,
            lambda network: network.classifier.score.bias.detach().cpu().clone(),
            [AfterEpoch(on_epoch)],
        )  # fmt: skip

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", stop_after=2)
    resumed = train(tmp_path / "parts")
    assert resumed.rows[:2] == recorded
    for history in (whole, resumed):
        assert [row["epoch"] for row in history.rows] == [1, 2, 3, 4]
        assert history.rows[-1]["loss/total"] < 0.8 * history.rows[0]["loss/total"]
        assert all(math.isfinite(value) for row in history.rows for value in row.values())


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # says that it may miss some
def test_step_does_not_wait_for_the_gpu(tiny_model):
    fabric = Fabric(accelerator="cuda", devices=1, precision="bf16-mixed")
    model = tiny_model()
    freeze(model, training_section())
    loader = training_loader(Stripes(), batch_size=2, seed=0, num_workers=0)
    task = task_of(model, loader, OPTIONS, WEIGHTS, attention=attention_section(masked_stride=2), fabric=fabric)
    guided, optimizer = fabric.setup(task.network, build_optimizer(model, OPTIONS, fused=True))
    for batch in loader:
        try:
            torch.cuda.set_sync_debug_mode("error")
            add_gradients(task, guided, [batch], 1.0, 0)
            fabric.clip_gradients(guided, optimizer, max_norm=1.0, error_if_nonfinite=False)
            optimizer.step()
            optimizer.zero_grad()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")  # Fabric sets DDP up on a stream of its own
def test_one_rank_over_nccl_takes_the_same_step(tiny_model, exact_convolutions, monkeypatch):
    """DDP with its bucketed gradients; two ranks of the CPU are compared in test_ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    sample = next(iter(training_loader(Stripes(), batch_size=4, seed=0, num_workers=0)))
    start, results = tiny_model().state_dict(), []
    for strategy in ("auto", "ddp"):
        fabric = Fabric(accelerator="cuda", devices=1, strategy=strategy)
        fabric.launch()
        model = tiny_model()
        model.load_state_dict(start)
        freeze(model, training_section())
        training_mode(model, training_section(update_batch_norm=True))
        task = task_of(model, [], OPTIONS, WEIGHTS, attention=attention_section(masked_stride=2), fabric=fabric)
        guided, _ = fabric.setup(task.network, build_optimizer(model, OPTIONS, fused=True))
        add_gradients(task, guided, [sample], 1.0, 0)
        results.append({name: p.grad.double().cpu() for name, p in model.named_parameters() if p.grad is not None})
    torch.distributed.destroy_process_group()
    assert worst(results[1], results[0]) < 1e-3


def test_flops_are_those_counted_on_the_cpu(tiny_model):
    network = GuidedNetwork(tiny_model(), attention_section(masked_stride=2))
    criterion = Criterion(WEIGHTS, network.model.attention_grid, attention_section())
    on_cpu = training_flops(network, criterion, (64, 64))
    assert training_flops(network.cuda(), criterion, (64, 64)) == on_cpu
    for precision in ("32-true", "bf16-mixed"):
        assert 1e12 < peak_flops(torch.device("cuda"), precision).flops < 1e16


def test_prediction_is_that_of_the_cpu(tiny_model, exact_convolutions):
    image = torch.randint(0, 256, (75, 50, 3), dtype=torch.uint8).numpy()
    names, model = ("cat", "dog", "cow"), tiny_model()
    found = [predict(Outputs(model.to(d)).eval(), names, image, torch.device(d)) for d in ("cpu", "cuda")]
    assert found[1].class_probs == pytest.approx(found[0].class_probs, abs=1e-4)
    assert (found[1].segmentation == found[0].segmentation).mean() > 0.999
    assert found[1].attention.keys() == found[0].attention.keys()
