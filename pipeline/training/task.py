"""What is trained, from what, and by which rules."""

from dataclasses import dataclass

from torch.utils.data import DataLoader

from pipeline.base.attention import Attention
from pipeline.base.fabric import Fabric
from pipeline.base.sections import Training
from pipeline.data.samples import Sample
from pipeline.gain.losses import Criterion
from pipeline.gain.network import GuidedNetwork
from pipeline.model.fcn8s import FCN8s


@dataclass(frozen=True)
class Task:
    """One training; pretrain, classify and finetune differ in nothing but what they put in here."""

    name: str  # STAGE[/VARIANT]
    seed: int  # with the epoch and the rank, decides dropout and the choice of pairs
    fabric: Fabric
    network: GuidedNetwork  # is trained in place
    criterion: Criterion
    loader: DataLoader[Sample]  # from `training_loader`
    options: Training
    attention: Attention
    compiled: bool  # let torch.compile translate the step, which takes minutes and pays in long trainings

    @property
    def model(self) -> FCN8s:
        """The network without its guidance."""
        return self.network.model

    @property
    def steps_per_epoch(self) -> int:
        """A step takes `accumulate_grad_batches` batches of the loader."""
        return len(self.loader) // self.options.accumulate_grad_batches

    @property
    def num_steps(self) -> int:
        """In all epochs."""
        return self.options.num_epochs * self.steps_per_epoch
