"""Shared small networks and batches. Every test computes on one thread pool and from fixed seeds."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, settings
from sections import architecture_section, training_section

from pipeline.base.errors import PipelineError
from pipeline.base.sections import Training
from pipeline.data.samples import Sample
from pipeline.model.fcn8s import FCN8s

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")  # a machine that is busy with something else is no failure

pytest_plugins = ["processes"]

NUM_CLASSES = 3
SLOWEST = ("test_flows.py", "test_dag.py", "test_ranks.py", "test_voc_dag.py")  # first, so that no core waits later
ON_ONE_RUN = (
    *SLOWEST[:2],
    "test_faults.py",
    "test_mending.py",
)  # files that share fixtures of the session, so that one process must run them


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: index for index, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "pipeline" if file.endswith(ON_ONE_RUN) else file

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny_model() -> Callable[..., FCN8s]:
    """A network of a few thousand parameters with scores that are not all zero, and hardly a map that is dead."""

    def build(**options: object) -> FCN8s:
        model = FCN8s(NUM_CLASSES, architecture_section(**options))
        for layer in (model.decoder.score_fr, model.decoder.score_pool3, model.decoder.score_pool4):
            torch.nn.init.normal_(layer.weight, std=0.1)
        with torch.no_grad():
            for layer in (model.classifier.fc1, model.classifier.fc2):  # no hidden unit is off
                layer.weight.abs_()
            model.classifier.score.weight += model.classifier.score.weight.std()
        return model.eval()

    return build


@pytest.fixture
def batch() -> Sample:
    """Four 48x40 images: one class, two classes, none, all three; guidance knows the first two."""
    image = torch.randn(4, 3, 48, 40)
    target = torch.zeros(4, 48, 40, dtype=torch.int64)
    target[0, 8:24, 8:24] = 1
    target[1, :16, :16], target[1, 24:, 24:] = 2, 3
    target[3, :10], target[3, 20:30], target[3, 40:] = 1, 2, 3
    target[0, 7, 8:24] = 255
    labels = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1]]).float()
    guidance = target.to(torch.uint8)
    guidance[2:] = 255
    return Sample(image, target, guidance, labels, torch.arange(4))


@pytest.fixture
def scene(batch: Sample) -> Sample:
    """The shared batch at twice its size, which leaves a grid of several cells at half the resolution."""
    target, guidance = (
        value.repeat_interleave(2, 1).repeat_interleave(2, 2) for value in (batch.target, batch.guidance)
    )
    return batch._replace(image=F.interpolate(batch.image, scale_factor=2), target=target, guidance=guidance)


@pytest.fixture
def test_set(batch) -> list[Sample]:
    """Eight images in batches of four; no two are alike."""
    noise = torch.randn(4, 3, 48, 40, generator=torch.Generator().manual_seed(1))
    return [batch, batch._replace(image=noise, sample_index=batch.sample_index + 4)]


@pytest.fixture
def sighted_model(tiny_model, test_set) -> FCN8s:
    """It finds each class in some images and not in others."""
    model = tiny_model()
    with torch.no_grad():
        logits = torch.cat([model(batch.image, segmentation=False)[1] for batch in test_set])
        model.classifier.score.bias -= logits.mean(dim=0)
    return model


@pytest.fixture
def training_options() -> Training:
    """A short training in which everything learns."""
    return training_section()


@pytest.fixture(scope="session")
def refused() -> Callable[..., str]:
    """Calls a function that must refuse its arguments; the message, which must be one line."""

    def message(function: Callable[..., object], *args: object, **kwargs: object) -> str:
        with pytest.raises(PipelineError) as refusal:
            function(*args, **kwargs)
        assert "\n" not in str(refusal.value)
        return str(refusal.value)

    return message
