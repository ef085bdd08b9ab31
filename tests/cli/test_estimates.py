"""Estimates of memory and disk, in their order of magnitude and in what they depend on."""

from pathlib import Path

from pipeline.base.params import load_params
from pipeline.cli.estimates import disk_bytes, evaluation_bytes, largest_image, training_bytes

PARAMS = Path(__file__).parents[2] / "params.yaml"


def test_training_grows_with_batch_and_network():
    smoke, full = (load_params(PARAMS, profile=name) for name in ("smoke", "voc2012"))
    assert 1e6 < training_bytes(smoke) < 1e9
    assert 4e9 < training_bytes(full) < 40e9
    batch_size = full.finetune.batch_size
    for change in ({"batch_size": batch_size // 2}, {"accumulate_grad_batches": 2}):
        half = full.finetune.model_copy(update={**{"accumulate_grad_batches": 1}, **change})
        whole = full.finetune.model_copy(update={"accumulate_grad_batches": 1})
        smaller, larger = (full.model_copy(update={"finetune": options}) for options in (half, whole))
        assert training_bytes(smaller) < training_bytes(larger)
    two = larger.model_copy(update={"runtime": full.runtime.model_copy(update={"devices": 2})})
    assert training_bytes(two) == training_bytes(smaller)


def test_evaluation_grows_with_the_image():
    smoke = load_params(PARAMS, profile="smoke")
    assert evaluation_bytes(smoke, (64, 64)) < evaluation_bytes(smoke, (128, 64))


def test_data_set_that_is_there_needs_no_disk():
    full = load_params(PARAMS, profile="voc2012")
    assert disk_bytes(full, data_is_there=False) - disk_bytes(full, data_is_there=True) == 9e9


def test_largest_image_is_that_of_the_profile_without_a_manifest(tmp_path):
    smoke = load_params(PARAMS, profile="smoke")
    assert largest_image(smoke, tmp_path) == (smoke.download.image_size,) * 2
    assert largest_image(load_params(PARAMS, profile="voc2012"), tmp_path) == (500, 500)


def test_separated_test_images_need_disk():
    params = load_params(PARAMS, profile="voc2012")
    fewer = params.model_copy(update={"counterfactual": params.counterfactual.model_copy(update={"max_per_class": 1})})
    difference = disk_bytes(params, data_is_there=True) - disk_bytes(fewer, data_is_there=True)
    assert difference == 2 * 5 * (1000 - 20) * 500 * 500 * 1.5  # 5 images of an object and DVC's copy of each
