"""Trainings of a tiny network, alone or as one of several ranks; tests/training/test_ranks.py compares their results.

    python tests/ranks_training.py FOLDER CASES NUM_RANKS

CASES is JSON: the name of a training to accumulate_grad_batches, update_batch_norm and uneven; or of a single step in
float64, whose losses and gradients are written, to accumulate_grad_batches alone.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from lightning_fabric import Fabric
from sections import architecture_section, attention_section, training_section
from tasks import task_of
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.base.ranks import rank_mean
from pipeline.data.loaders import evaluation_loader, start_epoch, training_loader
from pipeline.data.samples import Sample
from pipeline.evaluation.passes import Scoring, evaluate, validation_scores
from pipeline.gain.losses import LOSS_NAMES
from pipeline.model.fcn8s import FCN8s
from pipeline.training.checkpoints import CheckpointFile
from pipeline.training.loop import fit
from pipeline.training.optimization import build_optimizer, freeze, training_mode
from pipeline.training.step import add_gradients, in_steps

NUM_IMAGES = 24
SCORING = Scoring(attention_threshold=0.2, mask_threshold=0.5, mask_slope=10.0)


class Rectangles(Dataset[Sample]):
    """Images of one to three rectangles of their classes' brightness; with `uneven`, half of the images show none.

    With `few_labels`, every eighth image guides attention, which leaves most parts of a step without any.
    """

    def __init__(self, uneven: bool, few_labels: bool = False) -> None:
        self.uneven = uneven
        self.few_labels = few_labels
        self.rows = [SimpleNamespace(height=48, width=48)] * NUM_IMAGES

    def set_epoch(self, epoch: int) -> None:
        pass

    def __len__(self) -> int:
        return NUM_IMAGES

    def __getitem__(self, index: int) -> Sample:
        generator = torch.Generator().manual_seed(index)
        target = torch.zeros(48, 48, dtype=torch.int64)
        for label in range(0 if self.uneven and index % 2 else 1 + index % 3):
            row, column = torch.randint(0, 28, (2,), generator=generator).tolist()
            target[row : row + 16, column : column + 8 + index] = label + 1
        target[:index, 40:] = 255  # as many void pixels as the image likes
        image = torch.randn(3, 48, 48, generator=generator) * 0.1 + target * (target < 4) - 1.0
        labels = torch.tensor([float((target == label).any()) for label in (1, 2, 3)])
        guidance = target.to(torch.uint8)
        if self.few_labels and index % 8:
            guidance.fill_(255)
        return Sample(image, target, guidance, labels, torch.tensor(index))


def main(folder: Path, cases: dict[str, dict[str, int]], *, num_ranks: int) -> None:
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=num_ranks, strategy="ddp" if num_ranks > 1 else "auto")
    fabric.launch()
    folder.mkdir(parents=True, exist_ok=True)
    for name, options in cases.items():
        if "uneven" in options:
            train(fabric, folder / name, options)
        else:
            exact_step(folder / name, num_parts=options["accumulate_grad_batches"], num_ranks=num_ranks)


def exact_step(output: Path, *, num_parts: int, num_ranks: int) -> None:
    """Losses and gradients of one step of 16 images, three of them labelled, some of more classes than are guided."""
    model = network()
    torch.set_default_dtype(torch.float64)  # Fabric would give float32 back
    try:
        fabric = Fabric(
            accelerator="cpu", devices=num_ranks, strategy="ddp" if num_ranks > 1 else "auto", precision="64-true"
        )
        fabric.launch()
        training = training_section(batch_size=16, accumulate_grad_batches=num_parts, update_batch_norm=False)
        loader = training_loader(
            Rectangles(uneven=False, few_labels=True), batch_size=16, seed=0, num_workers=0,
            accumulate_grad_batches=num_parts, rank=fabric.global_rank, num_ranks=num_ranks,
        )  # fmt: skip
        attention = attention_section(second_order=True, max_classes_per_image=1, guidance_sharpness=2.0)
        weights = dict.fromkeys(LOSS_NAMES, 1.0)
        task = task_of(model, loader, training, weights, attention=attention, fabric=fabric)
        freeze(model, training_section())
        guided, _ = fabric.setup(task.network, build_optimizer(model, training, fused=False))
        training_mode(model, training_section(update_batch_norm=False))
        start_epoch(loader, 1)
        record = add_gradients(task, guided, next(in_steps(loader, num_parts)), 1.0, 1)
        losses = {name: rank_mean(value).item() for name, value in record.items() if name.startswith("loss/")}
        gradients = {name: p.grad.flatten().tolist() for name, p in model.named_parameters() if p.grad is not None}
        result = {"losses": losses, "gradients": gradients, "dead": rank_mean(record["dead"]).item()}
        output.with_name(f"{output.name}.{fabric.global_rank}.json").write_text(json.dumps(result))
    finally:
        torch.set_default_dtype(torch.float32)


def network() -> FCN8s:
    """The same each time, with scores that are not all zero."""
    torch.manual_seed(0)
    model = FCN8s(3, architecture_section())
    for layer in (model.decoder.score_fr, model.decoder.score_pool3, model.decoder.score_pool4):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return model


def train(fabric: Fabric, output: Path, options: dict[str, int]) -> None:
    training = training_section(
        num_epochs=2, batch_size=8, accumulate_grad_batches=options["accumulate_grad_batches"], optimizer="sgd",
        max_gradient_norm=0.5, update_batch_norm=bool(options["update_batch_norm"]),
    )  # fmt: skip
    model = network()
    data = Rectangles(bool(options["uneven"]))
    share = {"num_workers": 0, "rank": fabric.global_rank, "num_ranks": fabric.world_size}
    loader = training_loader(
        data, batch_size=8, seed=0, accumulate_grad_batches=training.accumulate_grad_batches, **share
    )
    val_loader = evaluation_loader(data, batch_size=5, **share)

    def validate(network: FCN8s) -> dict[str, float]:
        scores = validation_scores(evaluate(network, val_loader, torch.device("cpu"), SCORING))
        return {f"val/{name}": value for name, value in scores.items()}

    def observe(network: FCN8s) -> Tensor:
        return network.classifier.score.bias.detach().clone()

    # Statistics of a masked pass would be of as many images as a rank has pairs: base/profile.py refuses that.
    mined = not training.update_batch_norm
    losses = {name: 1.0 for name in LOSS_NAMES if mined or name != "attention_mining"}
    attention = attention_section(second_order=True)
    task = task_of(model, loader, training, losses, attention=attention, fabric=fabric)
    history = fit(task, CheckpointFile(output, "run"), validate, observe, [])
    weights = torch.cat([value.double().flatten() for value in model.state_dict().values()])
    result = {"rows": history.rows, "weights": weights.tolist()}
    output.with_name(f"{output.name}.{fabric.global_rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), num_ranks=int(sys.argv[3]))
