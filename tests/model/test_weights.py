import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.base.sections import Architecture
from pipeline.model.decoder import UPSAMPLING, bilinear_kernel
from pipeline.model.fcn8s import AttentionGrid, FCN8s
from pipeline.model.weights import build_model, load_weights, save_weights, state_digest

CLASS_NAMES = ("cat", "dog", "fox")
ARCHITECTURE: dict[str, Any] = {
    "width": 0.0625,
    "fc_channels": 8,
    "head_channels": 8,
    "head_bias": False,
    "batch_norm": True,
    "padding": 1,
    "dropout": 0.1,
    "skip_scales": (0.01, 0.0001),
    "attention_layer": "pool5",
}
NETWORK = {"architecture": {**ARCHITECTURE, "input_space": "caffe_bgr"}, "class_names": CLASS_NAMES}
DESCRIPTION = {"network": json.dumps(NETWORK)}


def lively_model(**changes: Any) -> FCN8s:
    """A network in which no tensor still has its initial value, so that a forgotten one shows in the outputs."""
    model = build_model(Architecture(**{**ARCHITECTURE, **changes}), CLASS_NAMES, seed=0, input_space="caffe_bgr")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))
            else:
                tensor.fill_(7 + len(name))
    return model.eval()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "models" / "a.safetensors"
    save_weights(path, lively_model(), CLASS_NAMES)
    return path


def rewrite(path: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors of a file (or take them away), its description kept."""
    tensors = {name.replace(".", "__"): tensor for name, tensor in load_file(path).items()} | changes
    kept = {name.replace("__", "."): tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, path, metadata=DESCRIPTION)


# ---- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"batch_norm": False, "padding": 100, "skip_scales": (1.0, 1.0)}])
def test_loaded_network_gives_bit_equal_outputs(tmp_path, changes):
    model = lively_model(**changes)
    save_weights(tmp_path / "a.safetensors", model, CLASS_NAMES)
    loaded, class_names = load_weights(tmp_path / "a.safetensors")
    assert class_names == CLASS_NAMES
    assert state_digest(loaded) == state_digest(model)
    image = torch.randn(2, 3, 40, 56)
    with torch.no_grad():
        expected, found = model(image), loaded.eval()(image)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert expected[0].std() > 0
    assert expected[1].std() > 0


def test_file_holds_every_parameter_and_buffer(weights):
    assert load_file(weights).keys() == lively_model().state_dict().keys()


def test_loaded_network_keeps_its_architecture(weights):
    loaded, _ = load_weights(weights)
    assert loaded.decoder.skip_scales == (0.01, 0.0001)
    assert (loaded.decoder.dropout.p, loaded.num_foreground_classes) == (0.1, 3)
    assert (loaded.attention_layer, loaded.attention_grid) == ("pool5", AttentionGrid(stride=32, padding=1))


def test_file_with_the_fixed_upsampling_of_earlier_versions_is_read(weights):
    fixed = {f"decoder__{layer}__weight": bilinear_kernel(4, factor) for layer, factor in UPSAMPLING.items()}
    rewrite(weights, **fixed)
    assert state_digest(load_weights(weights)[0]) == state_digest(lively_model())


@pytest.mark.parametrize("change", [lambda w: w + 0.01, lambda w: w.flip(0), torch.isnan])
def test_other_upsampling_than_bilinear_is_refused(weights, refused, change):
    rewrite(weights, decoder__upscore8__weight=change(bilinear_kernel(4, 8)))
    assert "upscore8 does not upsample bilinearly by 8" in refused(load_weights, weights)


@pytest.mark.parametrize(
    "tensor", [torch.zeros(4, 4, 16, 15), torch.zeros(3, 3, 16, 16), torch.zeros(10**5), torch.zeros(())]
)
def test_upsampling_of_another_shape_is_refused_before_it_is_compared(weights, refused, tensor):
    rewrite(weights, decoder__upscore8__weight=tensor)
    assert "decoder.upscore8.weight has shape" in refused(load_weights, weights)


def test_only_the_weights_are_left_in_the_folder(weights):
    assert [path.name for path in weights.parent.iterdir()] == ["a.safetensors"]


def test_same_weights_make_the_same_bytes(tmp_path):
    contents, path = set(), tmp_path / "a.safetensors"
    for _ in range(12):
        save_weights(path, lively_model(), CLASS_NAMES)
        contents.add(path.read_bytes())
    assert len(contents) == 1


def test_weights_that_cannot_be_written_are_refused_by_name(tmp_path, refused):
    (tmp_path / "models").write_text("a file where a folder should be")
    path = tmp_path / "models" / "a.safetensors"
    message = refused(save_weights, path, lively_model(), CLASS_NAMES)
    assert message.startswith(f"{path}: weights could not be written (")


def test_full_disk_keeps_the_old_weights(weights, refused):
    """A write that the disk cuts short, after 2000 bytes."""
    resource = pytest.importorskip("resource")
    before = weights.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        message = refused(
            save_weights, weights, build_model(Architecture(**ARCHITECTURE), CLASS_NAMES, seed=1), CLASS_NAMES
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert message.startswith(f"{weights}: weights could not be written (")
    assert weights.read_bytes() == before
    assert [path.name for path in weights.parent.iterdir()] == ["a.safetensors"]


# ---- bad files -------------------------------------------------------------------------------------------------------


def test_missing_file_says_how_to_get_it(tmp_path, refused):
    path = tmp_path / "a.safetensors"
    message = refused(load_weights, path)
    assert message == f"{path}: weights missing; run `dvc repro`, or `dvc pull` where a remote is set up"


@pytest.mark.parametrize("kept", [0.0, 0.00001, 0.001, 0.5, 0.99999])
def test_truncated_file_is_named(weights, refused, kept):
    data = weights.read_bytes()
    weights.write_bytes(data[: int(kept * len(data))])
    assert refused(load_weights, weights).startswith(f"{weights}: not a readable safetensors file (")


def test_pickle_is_not_read(tmp_path, refused):
    path = tmp_path / "a.safetensors"
    torch.save({"weight": torch.zeros(1)}, path)
    assert refused(load_weights, path).startswith(f"{path}: not a readable safetensors file (")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"network": "{"}, {"network": "[]"}])
def test_safetensors_of_another_project_are_refused(weights, refused, metadata):
    save_file(load_file(weights), weights, metadata=metadata)
    message = refused(load_weights, weights)
    assert message.startswith(f"{weights}: does not describe its network")


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": None},
        {"architecture": {}},
        {"architecture": {"skip_scales": [1, 1], "wdth": 1}},
        {"architecture": {"skip_scales": [1, 1], "attention_layer": "pool6"}},
        {"architecture": {"skip_scales": [1, 1], "width": 1.0e9}},
        {"architecture": {"skip_scales": [1, 1], "width": math.inf}},
        {"architecture": {"skip_scales": [1, 1], "input_space": "caffe_rgb\x1b[31m" * 1000}},
        {"class_names": 3},
        {"class_names": "cat"},
        {"class_names": []},
        {"class_names": ["cat", "cat"]},
        {"class_names": ["cat"] * 1_000_000},
        {"scale": 1.0e9},
    ],
)
def test_unusable_description_is_refused(weights, refused, changes):
    save_file(load_file(weights), weights, metadata={"network": json.dumps(NETWORK | changes)})
    message = refused(load_weights, weights)
    assert message.startswith(f"{weights}: does not describe its network (")
    assert message.isprintable()
    assert len(message) < 600


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 100_000 + "]" * 100_000, '{"a": ' * 100_000, "9" * 6000])
def test_description_that_is_no_json_of_ours_is_one_line(weights, refused, text):
    save_file(load_file(weights), weights, metadata={"network": text})
    message = refused(load_weights, weights)
    assert "does not describe its network (" in message
    assert message.isprintable()


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html>", b"\n <HTML>", b"<?xml version='1.0'?><Error/>"])
def test_page_saved_as_weights_is_called_that(weights, refused, content):
    weights.write_bytes(content)
    assert "not weights: save what the page leads to" in refused(load_weights, weights)


@pytest.mark.parametrize("name", ["trunk.conv1_1.weight", "classifier.score.bias", "trunk.bn3_2.running_var"])
def test_missing_tensor_is_named(weights, refused, name):
    rewrite(weights, **{name.replace(".", "__"): None})
    message = refused(load_weights, weights)
    assert message == f"{weights}: tensor {name} is missing; these weights belong to another network"


def test_unknown_tensor_is_named(weights, refused):
    rewrite(weights, classifier__fc9__bias=torch.zeros(3))
    message = refused(load_weights, weights)
    assert message == f"{weights}: tensor classifier.fc9.bias is unknown; these weights belong to another network"


@pytest.mark.parametrize("shape", [(4,), (1,), (3, 1), ()])
def test_tensor_of_another_shape_is_named_with_both_shapes(weights, refused, shape):
    rewrite(weights, classifier__score__bias=torch.zeros(shape))
    message = refused(load_weights, weights)
    assert f"tensor classifier.score.bias has shape {shape}, expected (3,);" in message
    assert message.startswith(f"{weights}: ")


def test_several_wrong_tensors_are_counted(weights, refused):
    rewrite(weights, classifier__score__bias=None, classifier__score__weight=torch.zeros(1), x=torch.zeros(1))
    assert "tensor classifier.score.bias is missing (and 2 more)" in refused(load_weights, weights)


def test_rewriting_alone_does_no_harm(weights):
    """The refusals above are not the rewriting's fault."""
    before = state_digest(load_weights(weights)[0])
    rewrite(weights)
    assert state_digest(load_weights(weights)[0]) == before


# ---- initial weights -------------------------------------------------------------------------------------------------


def test_initial_weights_depend_on_the_seed_alone():
    first = state_digest(build_model(Architecture(**ARCHITECTURE), CLASS_NAMES, seed=3))
    torch.manual_seed(99)
    assert state_digest(build_model(Architecture(**ARCHITECTURE), CLASS_NAMES, seed=3)) == first
    assert state_digest(build_model(Architecture(**ARCHITECTURE), CLASS_NAMES, seed=4)) != first


def test_building_leaves_the_global_generator_untouched():
    state = torch.get_rng_state()
    build_model(Architecture(**ARCHITECTURE), CLASS_NAMES, seed=3)
    assert torch.equal(torch.get_rng_state(), state)


def test_loading_leaves_the_global_generator_untouched(weights):
    state = torch.get_rng_state()
    load_weights(weights)
    assert torch.equal(torch.get_rng_state(), state)


def test_class_names_set_the_number_of_classes():
    model = build_model(Architecture(**ARCHITECTURE), ("cat",), seed=0)
    assert (model.num_foreground_classes, model.decoder.score_fr.out_channels) == (1, 2)


# ---- digests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "trunk.conv5_3.weight",
        "trunk.bn1_2.bias",
        "trunk.bn2_1.running_mean",
        "trunk.bn4_3.running_var",
        "trunk.bn4_3.num_batches_tracked",
        "decoder.fc6.weight",
        "classifier.score.bias",
    ],
)
def test_digest_changes_with_one_element_of_any_parameter_or_buffer(name):
    model = build_model(Architecture(**ARCHITECTURE), CLASS_NAMES, seed=0)
    before = state_digest(model)
    element = model.state_dict()[name].view(-1)[-1:]
    old = element.clone()
    if element.is_floating_point():
        element.copy_(torch.nextafter(old, torch.tensor(torch.inf)))  # the smallest change there is
    else:
        element.add_(1)
    assert state_digest(model) != before
    element.copy_(old)
    assert state_digest(model) == before


def test_digest_ignores_memory_format_mode_and_gradients():
    model = build_model(Architecture(**ARCHITECTURE), CLASS_NAMES, seed=0)
    before = state_digest(model)
    model.requires_grad_(False)
    assert state_digest(model.eval().to(memory_format=torch.channels_last)) == before


def test_digest_sees_names_shapes_and_types():
    tensors = [("weight", torch.zeros(2, 3)), ("bias", torch.zeros(2, 3)), ("weight", torch.zeros(3, 2))]
    tensors += [("weight", torch.zeros(2, 3, dtype=torch.int32))]
    digests = set()
    for name, tensor in tensors:
        module = torch.nn.Module()
        module.register_buffer(name, tensor)
        digests.add(state_digest(module))
    assert len(digests) == 4


# ---- the scale at which a network looks at images --------------------------------------------------------------------


def test_weights_carry_the_scale_with_them_and_the_default_leaves_no_trace(tmp_path, weights):
    model, path = lively_model(), tmp_path / "b.safetensors"
    model.scale = 0.45
    save_weights(path, model, CLASS_NAMES)
    assert load_weights(path)[0].scale == 0.45
    assert load_weights(weights)[0].scale == 1.0
    with safe_open(weights, framework="pt") as file:
        assert set(json.loads(file.metadata()["network"])) == {"architecture", "class_names"}


@pytest.mark.parametrize("scale", [0, -1.0, float("inf"), "wide", None])
def test_scale_that_is_none_is_refused(weights, refused, scale):
    save_file(load_file(weights), weights, metadata={"network": json.dumps({**NETWORK, "scale": scale})})
    assert "does not describe its network" in refused(load_weights, weights)
