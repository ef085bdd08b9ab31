import math
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from sections import attention_section, training_section
from tasks import AfterEpoch, task_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import Dataset

from pipeline.base.errors import PipelineError
from pipeline.base.sections import Training
from pipeline.data.loaders import training_loader
from pipeline.data.samples import Sample
from pipeline.gain.losses import Criterion
from pipeline.gain.network import GuidedNetwork, class_pairs
from pipeline.model.weights import state_digest
from pipeline.tracking.progress import Progress
from pipeline.training.checkpoints import CheckpointFile, fingerprint
from pipeline.training.loop import fit, seed_epoch
from pipeline.training.optimization import (
    build_optimizer,
    freeze,
    gradient_norm,
    learning_rate_schedule,
    training_mode,
)
from pipeline.training.step import StepRecords, forward

ALL_WEIGHTS = {"segmentation": 1.0, "classification": 1.0, "attention_mining": 1.0, "external_supervision": 1.0}
OPTIONS = training_section()


class Squares(Dataset):
    """Images in which each class is a brightness; what a dropout mask or a wrong order would change is visible."""

    def __init__(self, count: int = 6) -> None:
        self.count, self.epoch = count, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        generator = torch.Generator().manual_seed(index)
        label = index % 3
        target = torch.zeros(32, 32, dtype=torch.int64)
        target[8:24, 8:24] = label + 1
        image = torch.randn(3, 32, 32, generator=generator) * 0.1 + (target > 0) * (label - 1.0 + 3.0 * (label > 0))
        labels = torch.eye(3)[label]
        return Sample(image, target, target.to(torch.uint8), labels, torch.tensor(index))


def last_bias(model):
    return model.classifier.score.bias.detach().clone()


def run(
    model, checkpoint: Path, options: Training = OPTIONS, *, loss_weights=ALL_WEIGHTS, ramp_fraction=0.1,
    validate=lambda _: {"val/mean_iou": 0.0}, observe=last_bias, on_epoch=lambda *_: None, watchers=(),
):  # fmt: skip
    loader = training_loader(Squares(), batch_size=options.batch_size, seed=0, num_workers=0)
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.seed_everything(0, verbose=False)
    attention = attention_section(ramp_fraction=ramp_fraction)
    task = task_of(model, loader, options, loss_weights, attention=attention, fabric=fabric)
    return fit(
        task, CheckpointFile(checkpoint.parent, checkpoint.name), validate, observe, [AfterEpoch(on_epoch), *watchers]
    )


def test_one_batch_is_overfit(tiny_model, tmp_path):
    model = tiny_model(width=0.125, head_channels=32)
    weights = {"segmentation": 1.0, "classification": 1.0}
    options = OPTIONS.model_copy(update={"num_epochs": 80, "batch_size": 6})
    history = run(model, tmp_path / "run", options, loss_weights=weights)
    first, last = history.rows[0], history.rows[-1]
    assert last["loss/segmentation"] < 0.1 * first["loss/segmentation"]
    assert last["loss/classification"] < 0.1 * first["loss/classification"]


@pytest.mark.parametrize("killed_after", [1, 2, 3])
def test_resumed_equals_uninterrupted(tiny_model, tmp_path, killed_after):
    """Dropout, order, optimiser, schedule, selection and record all go on as if nothing had happened."""
    scores = iter([0.1, 0.5, 0.3, 0.2])
    options = OPTIONS.model_copy(update={"select": "best"})
    start = tiny_model(dropout=0.5).state_dict()

    def network():
        model = tiny_model(dropout=0.5)
        model.load_state_dict(start)
        return model

    def validate_with(values):
        return lambda _: {"val/mean_iou": next(values)}

    whole = network()
    expected = run(whole, tmp_path / "whole", options, validate=validate_with(scores))

    class Killed(Exception):
        pass

    def kill(epoch, *_):
        if epoch == killed_after:
            raise Killed

    values = [0.1, 0.5, 0.3, 0.2]
    with pytest.raises(Killed):
        run(network(), tmp_path / "part", options, on_epoch=kill, validate=validate_with(iter(values)))
    resumed = network()
    history = run(resumed, tmp_path / "part", options, validate=validate_with(iter(values[killed_after:])))
    assert history.rows == expected.rows
    assert torch.equal(torch.stack(history.snapshots), torch.stack(expected.snapshots))
    assert history.selected_epoch == expected.selected_epoch == 2
    assert state_digest(resumed) == state_digest(whole)


@pytest.mark.parametrize(("threads", "said"), [((1, 1), False), ((2, 1), True)])
def test_resuming_with_other_threads_is_said(tiny_model, tmp_path, capsys, threads, said):
    """Sums are rounded as threads share them out, so that the bytes differ."""

    class Killed(Exception):
        pass

    def kill(*_):
        raise Killed

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads[0])
        with pytest.raises(Killed):
            run(tiny_model(), tmp_path / "run", on_epoch=kill)
        torch.set_num_threads(threads[1])
        history = run(tiny_model(), tmp_path / "run")
    finally:
        torch.set_num_threads(before)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "resuming after epoch 1" in line]
    assert ("with 1 threads where it was 2" in line and "OMP_NUM_THREADS=2" in line) is said
    assert history.num_threads == ([2, 1] if said else [1])


def test_no_epoch_validates_the_network_as_it_is(tiny_model, tmp_path):
    model, epochs = tiny_model(), []
    before = state_digest(model)
    options = OPTIONS.model_copy(update={"num_epochs": 0})
    history = run(
        model, tmp_path / "run", options,
        validate=lambda _: {"val/mean_iou": 0.25}, on_epoch=lambda epoch, *_: epochs.append(epoch),
    )  # fmt: skip
    assert history.rows == [{"epoch": 0, "val/mean_iou": 0.25}]
    assert epochs == [0]
    assert state_digest(model) == before


def test_snapshots_are_taken_before_training_and_after_every_epoch(tiny_model, tmp_path):
    model = tiny_model()
    seen = []

    def observe(observed):
        assert not observed.training
        return last_bias(observed)

    def on_epoch(epoch, history, _):
        seen.append((epoch, len(history.snapshots)))
        assert torch.equal(history.snapshots[-1], last_bias(model))

    before = last_bias(model)
    history = run(model, tmp_path / "run", observe=observe, on_epoch=on_epoch)
    assert seen == [(1, 2), (2, 3), (3, 4), (4, 5)]
    assert len(history.snapshots) == 1 + OPTIONS.num_epochs
    assert torch.equal(history.snapshots[0], before)
    assert torch.equal(history.snapshots[-1], last_bias(model))
    assert len({tuple(snapshot.tolist()) for snapshot in history.snapshots}) == 1 + OPTIONS.num_epochs


def test_best_epoch_is_selected_by_validation_score(tiny_model, tmp_path):
    states = []
    scores = iter([0.1, 0.5, 0.3, 0.2])

    def validate(model):
        states.append(state_digest(model))
        return {"val/mean_iou": next(scores)}

    model = tiny_model()
    history = run(model, tmp_path / "run", OPTIONS.model_copy(update={"select": "best"}), validate=validate)
    assert history.selected_epoch == 2
    assert state_digest(model) == states[1]


def test_nan_names_epoch_step_and_every_loss(tiny_model, tmp_path):
    model = tiny_model()
    torch.nn.init.constant_(model.classifier.score.weight, math.nan)
    with pytest.raises(
        PipelineError, match=r"epoch 1, step 1: segmentation = \d.*classification = nan.*learning_rate"
    ) as error:
        run(model, tmp_path / "run", loss_weights={"segmentation": 1.0, "classification": 1.0})
    assert "\n" not in str(error.value)


def test_infinite_loss_is_caught_too():
    records = StepRecords(epoch=3)
    for step in range(1, 10):
        records.add({"loss/segmentation": torch.tensor(math.inf if step == 7 else 1.0)}, learning_rate=step / 10)
    with pytest.raises(PipelineError, match=r"epoch 3, step 7: segmentation = inf; lower learning_rate \(now 0.7\)"):
        records.look()


def test_records_are_means_over_the_steps():
    records = StepRecords(epoch=1)
    for value in (1.0, 2.0, 6.0):
        records.add({"loss/total": torch.tensor(value), "train/gradient_norm": torch.tensor(math.inf)}, 0.1)
        records.look()
    assert records.means() == {"loss/total": 3.0, "train/gradient_norm": math.inf}
    assert records.num_steps == 3


def test_frozen_trunk_is_proven_unchanged_and_the_classifier_learns(tiny_model, tmp_path):
    """The frozen set is not inverted: the trunk stands, the fully connected layers move."""
    model = tiny_model()
    before = {part: state_digest(model.get_submodule(part)) for part in model.PARTS}
    options = OPTIONS.model_copy(update={"frozen": ["trunk", "decoder"]})
    history = run(model, tmp_path / "run", options, loss_weights={"classification": 1.0})
    after = {part: state_digest(model.get_submodule(part)) for part in model.PARTS}
    assert before["trunk"] == after["trunk"] == history.frozen["trunk"]["sha256_after"]
    assert before["decoder"] == after["decoder"]
    assert before["classifier"] != after["classifier"]


@pytest.mark.parametrize("batch_norm", [True, False])
def test_first_blocks_of_the_trunk_stand_still_with_their_statistics(tiny_model, tmp_path, batch_norm):
    model = tiny_model(batch_norm=batch_norm)
    before = {name: state_digest(layer) for name, layer in model.trunk.named_children()}
    options = OPTIONS.model_copy(update={"trainable_trunk_blocks": 2})
    history = run(model, tmp_path / "run", options)
    moved = {name for name, layer in model.trunk.named_children() if state_digest(layer) != before[name]}
    learning = {f"conv{block}_{conv}" for block in (4, 5) for conv in (1, 2, 3)}
    assert moved == (learning | {name.replace("conv", "bn") for name in learning} if batch_norm else learning)
    still = {name for name, layer in model.trunk.named_children() if list(layer.parameters())} - moved
    assert set(history.frozen) == {f"trunk.{name}" for name in still}


def test_frozen_part_that_moves_is_an_error(tiny_model, tmp_path):
    model = tiny_model()

    def tamper(*_):
        model.trunk.conv1_1.weight.data[0, 0, 0, 0] += 1e-3

    options = OPTIONS.model_copy(update={"frozen": ["trunk"]})
    with pytest.raises(PipelineError, match="trunk is frozen but has changed"):
        run(model, tmp_path / "run", options, loss_weights={"classification": 1.0}, on_epoch=tamper)


def test_validation_does_not_touch_batch_norm(tiny_model, tmp_path):
    model = tiny_model()
    states = []

    def validate(model):
        states.append(state_digest(model))
        model(torch.randn(2, 3, 32, 32))
        states.append(state_digest(model))
        return {"val/mean_iou": 0.0}

    run(model, tmp_path / "run", validate=validate)
    assert states[0::2] == states[1::2]


def test_batch_norm_statistics_move_only_on_request(tiny_model):
    model = tiny_model()
    for update in (False, True):
        training_mode(model, training_section(update_batch_norm=update))
        before = model.trunk.bn1_1.running_mean.clone()
        model(torch.randn(2, 3, 32, 32))
        assert torch.equal(before, model.trunk.bn1_1.running_mean) is not update
    training_mode(model, training_section(frozen=["trunk"], update_batch_norm=True))
    assert not model.trunk.training
    assert model.decoder.training


def test_learning_rates_by_part(tiny_model):
    model = tiny_model()
    freeze(model, training_section(frozen=["decoder"]))
    options = OPTIONS.model_copy(update={"learning_rate_scales": {"classifier": 5.0}})
    groups = {group["name"]: group["lr"] for group in build_optimizer(model, options, fused=True).param_groups}
    assert groups == {"trunk": 1e-2, "classifier": 5e-2}


# ---- gradient norms --------------------------------------------------------------------------------------------------

NORM = "train/gradient_norm"
ONE_STEP = OPTIONS.model_copy(update={"num_epochs": 1, "batch_size": 6, "update_batch_norm": False})


def norms_by_part(history):
    row = history.rows[0]
    return {name.removeprefix(f"{NORM}/"): value for name, value in row.items() if name.startswith(f"{NORM}/")}


@pytest.mark.parametrize("max_norm", [1e-3, 0.5, 1e6])
def test_gradient_norms_by_part_are_those_before_clipping(tiny_model, tmp_path, max_norm):
    model = tiny_model()
    freeze(model, training_section())
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    history = run(
        model, tmp_path / "run", ONE_STEP.model_copy(update={"max_gradient_norm": max_norm}), ramp_fraction=0.0
    )
    model.load_state_dict(start)
    model.zero_grad()
    criterion = Criterion(ALL_WEIGHTS, model.attention_grid, attention_section())
    batch = Sample(*(torch.stack(values) for values in zip(*(Squares()[i] for i in range(6)), strict=True)))
    _, losses = forward(GuidedNetwork(model, attention_section()), batch, class_pairs(batch.image_labels, 4), criterion)
    criterion.total(losses, 1.0).backward()
    expected = {part: float(gradient_norm(model.get_submodule(part).parameters())) for part in model.PARTS}
    assert norms_by_part(history) == pytest.approx(expected, rel=1e-3)
    assert min(expected.values()) > 1e-3
    whole = history.rows[0][NORM]
    assert math.hypot(*norms_by_part(history).values()) == pytest.approx(whole, rel=1e-3)
    assert (max_norm < whole) is (max_norm < 1e6)  # both sides of the clipping are seen


def test_frozen_part_has_no_gradient_norm_and_an_idle_part_has_norm_0(tiny_model, tmp_path):
    options = ONE_STEP.model_copy(update={"frozen": ["trunk"]})
    norms = norms_by_part(run(tiny_model(), tmp_path / "run", options, loss_weights={"segmentation": 1.0}))
    assert set(norms) == {"decoder", "classifier"}
    assert norms["classifier"] == 0.0
    assert norms["decoder"] > 0.0


def test_gradient_norm_by_hand():
    parameters = [torch.zeros(2, requires_grad=True) for _ in range(3)]
    parameters[0].grad, parameters[1].grad = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0])
    assert float(gradient_norm(parameters)) == 5.0
    assert float(gradient_norm(parameters[2:])) == 0.0


def test_training_warns_of_losses_that_do_not_fall(tiny_model, tmp_path, capsys):
    options = ONE_STEP.model_copy(update={"num_epochs": 3, "learning_rate": 1e-12})
    run(tiny_model(), tmp_path / "run", options, loss_weights={"segmentation": 1.0}, watchers=[Progress()])
    warnings = capsys.readouterr().err.splitlines()
    assert [line.split(";")[0].split(": ")[2] for line in warnings] == ["loss/segmentation does not fall"] * 2


def test_schedule_warms_up_and_ends_at_zero(tiny_model):
    optimizer = build_optimizer(tiny_model(), OPTIONS, fused=True)
    scheduler = learning_rate_schedule(optimizer, num_steps=20, warmup_fraction=0.2)
    rates = []
    for _ in range(20):
        rates.append(scheduler.get_last_lr()[0] / OPTIONS.learning_rate)
        optimizer.step()
        scheduler.step()
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert scheduler.get_last_lr()[0] == pytest.approx(0.0, abs=1e-12)


def test_attention_losses_ramp_over_the_first_steps(tiny_model, tmp_path):
    """With the ramp as long as the run, early totals hold less of the attention losses."""
    history = run(tiny_model(), tmp_path / "run", ramp_fraction=1.0)
    shares = [
        (row["loss/total"] - row["loss/segmentation"] - row["loss/classification"])
        / (row["loss/attention_mining"] + row["loss/external_supervision"])
        for row in history.rows
    ]
    # Three steps an epoch, twelve in all: mean ramps of 2/12, 5/12, 8/12 and 11/12.
    assert shares == pytest.approx([2 / 12, 5 / 12, 8 / 12, 11 / 12], abs=0.06)


def test_full_disk_keeps_the_previous_checkpoint(tmp_path):
    checkpoint = CheckpointFile(tmp_path, "run")
    checkpoint.save({"epoch": 1, "model": {"w": torch.ones(3)}})
    # Writing to /dev/full fails as a full disk does.
    checkpoint.path.with_name(checkpoint.path.name + ".partial").symlink_to("/dev/full")
    with pytest.raises(PipelineError, match=r"epoch 1 is still in .*run\.pt; free some disk space") as error:
        checkpoint.save({"epoch": 2, "model": {"w": torch.zeros(100_000)}})
    assert "No space left" in str(error.value)
    assert "\n" not in str(error.value)
    state = checkpoint.load()
    assert state is not None
    assert state["epoch"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]


def test_an_epoch_draws_at_random_by_seed_epoch_and_rank_alone():
    def draw(*key):
        seed_epoch(*key)
        return torch.rand(1).item()

    keys = [(seed, epoch, rank) for seed in (0, 1) for epoch in (0, 1) for rank in (0, 1)]
    draws = [draw(*key) for key in keys]
    assert [draw(*key) for key in keys] == draws
    assert len(set(draws)) == len(keys)


def test_checkpoint_holds_no_pickled_objects(tmp_path):
    checkpoint = CheckpointFile(tmp_path, "run")
    checkpoint.save({"epoch": 1, "rows": [{"loss/total": 0.5}], "selected_state": None})
    assert torch.load(checkpoint.path, weights_only=True)["rows"] == [{"loss/total": 0.5}]


def test_damaged_checkpoint_says_what_to_do(tmp_path):
    checkpoint = CheckpointFile(tmp_path, "run")
    checkpoint.save({"epoch": 1})
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:100])
    with pytest.raises(PipelineError, match=r"run\.pt: checkpoint cannot be read .* delete it to start over") as error:
        checkpoint.load()
    assert "\n" not in str(error.value)


def test_fingerprint_follows_parameters_and_inputs(tmp_path):
    data = tmp_path / "manifest.csv"
    data.write_text("a")
    original = fingerprint("pretrain", {"learning_rate": 0.1}, [data])
    assert original == fingerprint("pretrain", {"learning_rate": 0.1}, [data])
    assert original != fingerprint("pretrain", {"learning_rate": 0.2}, [data])
    assert original != fingerprint("classify", {"learning_rate": 0.1}, [data])
    data.write_text("b")
    assert original != fingerprint("pretrain", {"learning_rate": 0.1}, [data])


class HostReads(TorchDispatchMode):
    """Counts operations whose result the host must wait for."""

    WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in self.WAITING:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("masked_gradient", ["shared", "attention_only"])
def test_step_reads_nothing_back_from_the_device(tiny_model, batch, monkeypatch, masked_gradient):
    """A GPU can then be given the next step while it works on this one. Pairs are chosen before, on the host."""
    monkeypatch.setattr("pipeline.training.step.LOOK_SECONDS", math.inf)
    model = tiny_model()
    freeze(model, training_section())
    network = GuidedNetwork(
        model, attention_section(second_order=True, masked_stride=2, masked_gradient=masked_gradient)
    )
    fabric = Fabric(accelerator="cpu", devices=1)
    guided, optimizer = fabric.setup(network, build_optimizer(model, OPTIONS, fused=True))
    criterion = Criterion(ALL_WEIGHTS, model.attention_grid, attention_section())
    pairs, records = class_pairs(batch.image_labels, 4), StepRecords(epoch=1)
    for step in range(2):
        with HostReads() as reads:
            _, losses = forward(guided, batch, pairs, criterion)
            total = criterion.total(losses, 1.0)
            fabric.backward(total)
            norm = fabric.clip_gradients(guided, optimizer, max_norm=1.0, error_if_nonfinite=False)
            for part in model.PARTS:
                gradient_norm(model.get_submodule(part).parameters())
            optimizer.step()
            optimizer.zero_grad()
            records.add({"loss/total": total.detach(), "train/gradient_norm": norm.detach()}, 0.1)
        assert reads.found == [], step
    with HostReads() as reads:
        assert float(total.detach()) > 0
    assert reads.found  # it does see them
