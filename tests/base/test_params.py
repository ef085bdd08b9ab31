import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from pipeline.base.params import SECTIONS, lineage, load_params
from pipeline.base.remote_files import PUBLISHED_VGG16

COMMITTED = Path(__file__).parents[2] / "params.yaml"
DOCUMENT = yaml.safe_load(COMMITTED.read_text(encoding="utf-8"))
ABSENT = object()
# Mappings whose keys are no fields, or of which one is enough.
FREE_FORM = ("learning_rate_scales", "variants", "pixel_labels", "not_below", "at_least")


def written(folder: Path, changes: dict[str, Any], profile: str = "embedded") -> Path:
    """The committed parameters, with one profile, after setting (or taking away) values by their dotted keys."""
    document = json.loads(json.dumps({**DOCUMENT, "profile": profile}))  # a copy in which profiles share no list
    document["profiles"] = {name: document["profiles"][name] for name in reversed(lineage(document))}
    for dotted, value in changes.items():
        *parents, key = dotted.split(".")
        place = document
        for parent in parents:
            place = place[parent]
        if value is ABSENT:
            del place[key]
        else:
            place[key] = value
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def field_keys(section: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in section.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict) and name not in FREE_FORM:
            yield from field_keys(value, f"{prefix}{name}.")


def leaves(section: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(section, dict) or not section:
        return {prefix: section}
    return {k: v for name, value in section.items() for k, v in leaves(value, f"{prefix}.{name}".strip(".")).items()}


@pytest.mark.parametrize("profile", list(DOCUMENT["profiles"]))
def test_every_committed_profile_loads_with_the_values_of_the_file(tmp_path, profile):
    """What the profile says, and beyond it what the top of the file says."""
    params = load_params(written(tmp_path, {}, profile))
    assert (params.profile, params.seed) == (profile, DOCUMENT["seed"])
    found = json.loads(params.model_dump_json(by_alias=True, exclude_unset=True))
    for name in SECTIONS:
        expected = DOCUMENT[name]
        for like in reversed(lineage({**DOCUMENT, "profile": profile})):
            changed = DOCUMENT["profiles"][like].get(name, {})
            other_source = changed.get("source", expected.get("source")) != expected.get("source")
            expected = changed if other_source else {**expected, **changed}
        expected = {key: value for key, value in expected.items() if value is not None or name != "variants"}
        if name == "pretrain" and expected["weights"]["source"] == "imagenet":
            assert expected["weights"]["file"] is None
            expected = {**expected, "weights": {"source": "imagenet", "file": PUBLISHED_VGG16}}
        assert found[name] == expected


def test_committed_file_loads_as_it_is():
    assert load_params(COMMITTED).profile == DOCUMENT["profile"]


def test_parameters_cannot_be_changed_after_loading():
    params = load_params(COMMITTED)
    with pytest.raises(ValidationError, match="frozen"):
        params.pretrain.learning_rate = 1.0


@pytest.mark.parametrize("key", list(field_keys({name: DOCUMENT[name] for name in SECTIONS})))
def test_missing_key_is_named_in_full(tmp_path, refused, key):
    path = written(tmp_path, {f"{key}": ABSENT})
    assert refused(load_params, path) == f"{path}: {key}: is missing"


@pytest.mark.parametrize(
    ("parent", "unknown", "hint"),
    [
        ("", "sed", "did you mean 'seed'?"),
        ("", "zzz", "known: profile, seed, profiles, runtime"),
        ("", "modle", "did you mean 'model'?"),
        ("", "registre", "did you mean 'register'?"),
        ("pretrain", "lerning_rate", "did you mean 'learning_rate'?"),
        ("", "variant", "did you mean 'variants'?"),
        ("finetune", "warmup_fracton", "did you mean 'warmup_fraction'?"),
        ("attention", "mask_treshold", "did you mean 'mask_threshold'?"),
        ("runtime", "zzz", "known: device, precision, devices, num_nodes, strategy, compile"),
    ],
)
def test_unknown_key_is_named_with_a_hint(tmp_path, refused, parent, unknown, hint):
    path = written(tmp_path, {f"{parent}.{unknown}".lstrip("."): 1.0})
    location = f"{path}: {parent}: " if parent else f"{path}: "
    assert refused(load_params, path).startswith(f"{location}unknown key {unknown!r}; {hint}")


@pytest.mark.parametrize(
    ("key", "misspelt"),
    [("model", "modle"), ("pretrain.learning_rate", "lerning_rate"), ("attention.mask_slope", "mask_slop")],
)
def test_misspelt_key_in_place_of_the_right_one_is_named_with_a_hint(tmp_path, refused, key, misspelt):
    parent, _, right = key.rpartition(".")
    value = DOCUMENT
    for part in key.split("."):
        value = value[part]
    path = written(tmp_path, {f"{parent}.{right}".lstrip("."): ABSENT, f"{parent}.{misspelt}".lstrip("."): value})
    message = refused(load_params, path)
    place = f"{parent}: " if parent else ""
    assert message.startswith(f"{path}: {place}unknown key {misspelt!r}; did you mean {right!r}?")


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("seed", -1, "greater than or equal to 0, got -1"),
        ("seed", 2**31, "less than 2147483648"),
        ("seed", "0", "valid integer, got '0'"),
        ("seed", 1.5, "valid integer, got 1.5"),
        ("seed", True, "valid integer, got True"),
        ("runtime.device", "gpu", "'auto', 'cpu', 'cuda' or 'mps', got 'gpu'"),
        ("resources.num_workers", -1, "greater than or equal to 0, got -1"),
        ("download.image_size", 16, "greater than or equal to 32, got 16"),
        ("download.num_train", 0, "greater than or equal to 1, got 0"),
        ("download.num_train", 12.0, "valid integer, got 12.0"),
        ("download.jpeg_quality", 101, "less than or equal to 100, got 101"),
        ("attention.pixel_labels.fraction", 1.1, "less than or equal to 1, got 1.1"),
        ("model.width", 0, "greater than 0, got 0"),
        ("model.padding", 2, "1 or 100, got 2"),
        ("model.batch_norm", "yes", "valid boolean, got 'yes'"),
        ("model.dropout", 1.0, "less than 1, got 1.0"),
        ("pretrain", None, "valid dictionary or instance of Pretrain, got None"),
        ("pretrain", [1], "valid dictionary or instance of Pretrain, got [1]"),
        ("pretrain.learning_rate", 0.0, "greater than 0, got 0.0"),
        ("pretrain.learning_rate", float("nan"), "got nan"),
        ("pretrain.weight_decay", -0.1, "greater than or equal to 0, got -0.1"),
        ("pretrain.select", "first", "'best' or 'last', got 'first'"),
        ("finetune.batch_size", 0, "greater than or equal to 1, got 0"),
        ("attention.mask_threshold", 1.5, "less than or equal to 1, got 1.5"),
        ("model.attention_layer", "pool4", "'conv5_3' or 'pool5', got 'pool4'"),
        ("attention.trunk_gradient", 1.1, "less than or equal to 1, got 1.1"),
        ("attention.trunk_gradient", -0.1, "greater than or equal to 0, got -0.1"),
        ("attention.masked_gradient", "both", "'shared' or 'attention_only', got 'both'"),
        ("attention.guidance", "points", "'shuffled_masks', got 'points'"),
        ("attention.guidance_resolution", "pixel", "'grid' or 'image', got 'pixel'"),
        ("attention.guidance_reduction", "max", "'mean' or 'sum', got 'max'"),
        ("attention.guidance_sharpness", 0.0, "greater than 0, got 0.0"),
        ("variants.gain.loss_weights.segmentation", -1.0, "or equal to 0, got -1.0"),
        ("evaluate.panel_scale", 9, "less than or equal to 8, got 9"),
        ("register.registered_model_name", "a b", "should match pattern"),
    ],
)
def test_value_out_of_range_or_of_the_wrong_type_is_named(tmp_path, refused, key, value, problem):
    path = written(tmp_path, {key: value})
    message = refused(load_params, path)
    assert message.startswith(f"{path}: {key}: ")
    assert problem in message


@pytest.mark.parametrize("key", ["pretrain.learning_rate", "variants.gain.loss_weights.segmentation"])
def test_infinity_is_refused(tmp_path, refused, key):
    path = written(tmp_path, {f"{key}": float("inf")})
    assert refused(load_params, path).startswith(f"{path}: {key}: ")


@pytest.mark.parametrize("text", ["1e-05", "1e-5", "1.0e-5", "0.00001", ".00001", "1.e-5", "1E-5", "+1e-5"])
def test_number_is_a_number_however_it_is_written(tmp_path, text):
    """DVC writes 1.0e-5 as 1e-05, which YAML 1.1 reads as text."""
    path = written(tmp_path, {})
    path.write_text(path.read_text().replace("learning_rate: 0.002", f"learning_rate: {text}"))
    assert load_params(path).pretrain.learning_rate == 1e-5


@pytest.mark.parametrize("text", ["1e-05x", "9e52ce25", "e5", "1e", "'1e-5'"])
def test_what_only_looks_like_a_number_is_text(tmp_path, refused, text):
    path = written(tmp_path, {})
    path.write_text(path.read_text().replace("learning_rate: 0.002", f"learning_rate: {text}"))
    assert "pretrain.learning_rate: Input should be a valid number" in refused(load_params, path)


def test_key_given_twice_is_refused(tmp_path, refused):
    path = tmp_path / "params.yaml"
    path.write_text("profile: embedded\nseed: 0\nseed: 1\nprofiles: {}\n")
    assert "the key 'seed' is given twice" in refused(load_params, path)


def test_further_problems_are_counted(tmp_path, refused):
    path = written(tmp_path, {"model.width": 0, "model.padding": 2})
    assert refused(load_params, path).endswith("(and 1 more)")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("register.candidates", ["gian", "gain"], "register.candidates must name variants"),
        ("register.candidates", [], "register.candidates must name variants"),
        ("promote.better", [], "better must name at least one score"),
        ("promote.not_below", {"mean_iou": -0.1}, "greater than or equal to 0"),
        ("classify.frozen", ["decoder"], "classify: classify trains the classifier on the frozen trunk"),
        ("classify.trainable_trunk_blocks", 1, "so that trainable_trunk_blocks: 1 changes nothing; take trunk out of"),
        ("finetune.trainable_trunk_blocks", 0, "finetune.trainable_trunk_blocks: Input should be greater than"),
        ("classify.frozen", ["trunk", "classifier"], "classify: classify trains the classifier on the frozen trunk"),
        ("download.object_scale", [0.5, 0.25], "download: object_scale must be 0 < low <= high <= 1, got [0.5, 0.25]"),
        ("download.object_scale", [0.0, 0.5], "download: object_scale must be 0 < low <= high <= 1, got [0.0, 0.5]"),
        ("download.object_scale", [0.5, 1.5], "download.object_scale.1: Input should be less than or equal to 1"),
        ("download.object_scale", [0.5], "download.object_scale"),
        ("download.object_scale", ["0.2", 0.5], "download.object_scale"),
        ("classify.frozen", ["trunc"], "classify.frozen.0: Input should be 'trunk', 'decoder' or 'classifier'"),
        ("pretrain.learning_rate_scales", {"trunkk": 1.0}, "pretrain.learning_rate_scales.trunkk"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(tmp_path, refused, key, value, message):
    path = written(tmp_path, {f"{key}": value})
    refusal = refused(load_params, path)
    assert refusal.startswith(f"{path}: ")
    assert message in refusal


def test_unknown_candidate_is_told_the_variants(tmp_path, refused):
    path = written(tmp_path, {"register.candidates": ["gian", "gain"]})
    assert refused(load_params, path).endswith("(control, gain, gain_ext), got ['gian']")


def test_unknown_loss_is_named_with_the_known_ones(tmp_path, refused):
    path = written(tmp_path, {"variants.gain.loss_weights": {"segmentaton": 1.0}})
    message = refused(load_params, path)
    assert message.startswith(f"{path}: variants.gain.loss_weights.segmentaton")
    for loss in ("segmentation", "classification", "attention_mining", "external_supervision"):
        assert repr(loss) in message


# ---- sources of data and weights -------------------------------------------------------------------------------------

FILE = {"path": "/data/weights.pth", "mirrors": [], "checksum": None}
NO_COUNTERFACTUAL = {"promote.better": ["attention_iou"]}
FOLDER = {"source": "folder", "path": "/data/mine", "ignore_index": 255}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("download.source", "voc2013", "download.source: must be one of embedded, voc2012, folder, got 'voc2013'"),
        ("download.source", ABSENT, "download: unknown key 'archive'; known: source, image_size"),
        ("download.archiv", {}, "download: unknown key 'archiv'; did you mean 'archive'?"),
        ("download.archive.mirors", [], "download.archive: unknown key 'mirors'; did you mean 'mirrors'?"),
        ("download.archive", {"path": None, "mirrors": [], "checksum": None}, "name the path of the file, or mirrors"),
        ("download.archive.checksum", None, "a file that is fetched needs a checksum"),
        ("download.archive.checksum", "md5:12", "download.archive.checksum: a checksum is md5: and 32, or sha256: and"),
        ("download.archive.checksum", {}, "download.archive.checksum: a checksum is md5: and 32"),
        ("download.archive.checksum", {"new": "md5:12"}, "download.archive.checksum: a checksum is md5: and 32"),
        ("download.archive.checksum", {"a\nb": f"md5:{'0' * 32}"}, "of several, each has a name"),
        ("download.archive.max_gigabytes", ABSENT, "a file that is fetched needs max_gigabytes"),
        ("download.archive.max_gigabytes", 0.0, "download.archive.max_gigabytes: Input should be greater than 0"),
        ("download.train_split", "trainval", "download.train_split: Input should be 'train' or 'trainaug'"),
        ("download.num_val", 7, "num_val is the number of training images that validate"),
        ("download.test_split", "val", "num_val is the number of training images that validate"),
        ("pretrain.weights.source", "random", "file says where imported weights come from"),
        ("pretrain.weights.file", None, "file says where imported weights come from"),
        ("pretrain.weights.source", "imagenet", "num_epochs is 0, but weights of source 'imagenet' cannot segment yet"),
        ("pretrain.num_epochs", -1, "greater than or equal to 0, got -1"),
        ("classify.num_epochs", 0, "greater than or equal to 1, got 0"),
        ("classify.scale", [2.0, 1.0], "scale must be low <= high, got [2.0, 1.0]"),
        ("classify.crop_size", None, "scale changes the size of images: a batch of them needs a crop_size"),
    ],
)
def test_sources_that_make_no_sense_are_refused(tmp_path, refused, key, value, message):
    path = written(tmp_path, {f"profiles.voc2012.{key}": value}, "voc2012")
    refusal = refused(load_params, path)
    assert refusal.startswith(f"{path}: profiles.voc2012")
    assert message in refusal


def test_imagenet_without_a_file_is_the_one_that_torchvision_publishes(tmp_path):
    from torchvision.models import VGG16_Weights

    changes = {"profiles.voc2012.pretrain.num_epochs": 1}
    changes["profiles.voc2012.pretrain.weights"] = {"source": "imagenet", "file": None}
    file = load_params(written(tmp_path, changes, "voc2012")).pretrain.weights.file
    published = VGG16_Weights.IMAGENET1K_V1
    assert file.mirrors == [published.url]
    assert file.path is None
    prefix = published.url.removesuffix(".pth").rpartition("-")[2]  # as torch.hub has it
    assert file.checksum.startswith(f"sha256:{prefix}")
    size = published.meta["_file_size"] * 2**20
    assert size < file.max_gigabytes * 1e9 < 1.2 * size


def test_trainaug_needs_the_archive_of_sbd(tmp_path, refused):
    changes = {"profiles.voc2012.download.train_split": "trainaug", "profiles.voc2012.download.sbd": None}
    assert "trainaug needs the archive of SBD" in refused(load_params, written(tmp_path, changes, "voc2012"))


def test_folder_of_ones_own_is_a_source(tmp_path, refused):
    params = load_params(written(tmp_path, {**NO_COUNTERFACTUAL, "download": FOLDER}))
    assert params.download.source == "folder"
    bad = {**NO_COUNTERFACTUAL, "download": {**FOLDER, "ignore_index": 0}}
    assert "download.ignore_index: Input should be greater than or equal to 1" in refused(
        load_params, written(tmp_path, bad)
    )


def test_weights_that_saw_the_test_images_are_doubted(tmp_path):
    seen = {"profiles.voc2012.download.test_split": "val", "profiles.voc2012.download.num_val": 100}
    fair = {**seen, "profiles.voc2012.pretrain.num_epochs": 5, "profiles.voc2012.pretrain.weights.source": "imagenet"}
    assert load_params(written(tmp_path, {}, "voc2012")).doubts == []
    assert load_params(written(tmp_path, fair, "voc2012")).doubts == []
    (doubt,) = load_params(written(tmp_path, seen, "voc2012")).doubts
    assert "saw SBD-train" in doubt


# ---- variants --------------------------------------------------------------------------------------------------------

ATTENTION = "attention"
OVERRIDES = "variants.gain.attention"


def test_variant_differs_in_what_it_says_and_in_nothing_else(tmp_path):
    overrides = {"masked_gradient": "attention_only", "trunk_gradient": 0.125, "pixel_labels": {"count": 7}}
    params = load_params(written(tmp_path, {OVERRIDES: overrides}))
    shared, gain = params.attention.model_dump(), params.attention_of("gain").model_dump()
    assert gain == {**shared, **overrides, "pixel_labels": {"count": 7, "fraction": None}}
    assert (shared["masked_gradient"], shared["pixel_labels"]["count"]) == ("shared", None)
    for variant in ("control", "gain_ext"):
        assert params.attention_of(variant) == params.attention


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("mask_treshold", 0.5, "unknown key; did you mean 'mask_threshold'?"),
        ("guidence", "boxes", "unknown key; did you mean 'guidance'?"),
        ("zzz", 1, "unknown key; known: mask_threshold, mask_slope, "),
        ("mask_threshold", 1.5, "Input should be less than or equal to 1"),
        ("masked_gradient", "both", "Input should be 'shared' or 'attention_only'"),
        ("pixel_labels", {"count": 5, "fraction": 0.5}, "name either count (images) or fraction"),
        ("pixel_labels", {}, "name either count (images) or fraction"),
    ],
)
def test_bad_override_is_named_with_its_variant(tmp_path, refused, key, value, problem):
    path = written(tmp_path, {OVERRIDES: {key: value}})
    message = refused(load_params, path)
    assert message.startswith(f"{path}: variants.gain.attention.{key}: {problem}")


def test_unknown_key_of_a_variant_is_named_with_a_hint(tmp_path, refused):
    path = written(tmp_path, {"variants.gain.atention": {}})
    message = refused(load_params, path)
    assert message.startswith(f"{path}: variants.gain: unknown key 'atention'; ")


@pytest.mark.parametrize("labels", [{}, {"count": 5, "fraction": 0.5}, {"count": None, "fraction": None}])
def test_pixel_labels_are_a_count_or_a_fraction(tmp_path, refused, labels):
    path = written(tmp_path, {f"{ATTENTION}.pixel_labels": labels})
    assert refused(load_params, path).startswith(f"{path}: {ATTENTION}.pixel_labels: name either count (images) or ")


@pytest.mark.parametrize("labels", [{"count": 0}, {"count": 200}, {"fraction": 0.0}, {"fraction": 1.0}])
def test_one_of_count_and_fraction_is_enough(tmp_path, labels):
    attention = load_params(written(tmp_path, {f"{ATTENTION}.pixel_labels": labels})).attention
    assert attention.pixel_labels.model_dump(exclude_none=True) == labels


# ---- profile and seed from elsewhere ---------------------------------------------------------------------------------


def test_profile_and_seed_may_be_others_than_those_of_the_file(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({**DOCUMENT, "profile": "embedded", "seed": 3}), encoding="utf-8")
    assert [load_params(path).profile, load_params(path).seed] == ["embedded", 3]
    other = load_params(path, profile="smoke", seed=0)
    assert (other.profile, other.seed) == ("smoke", 0)
    assert other.download.num_train == DOCUMENT["profiles"]["smoke"]["download"]["num_train"]
    assert load_params(path, seed=5).profile == "embedded"
    assert load_params(path, profile="smoke").seed == 3


def test_profile_and_seed_from_elsewhere_are_checked_too(tmp_path, refused):
    path = written(tmp_path, {})
    message = f"{path}: profile: 'smok' is not under profiles; known: embedded"
    assert refused(load_params, path, profile="smok") == message
    assert refused(load_params, path, seed=-1).startswith(f"{path}: seed: Input should be greater than or equal to 0")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"profile": "embeded"}, "profile: 'embeded' is not under profiles; did you mean 'embedded'?"),
        ({"profile": None}, "profile: None is not under profiles; known: embedded"),
        ({"profile": ABSENT}, "profile: None is not under profiles"),
        ({"profiles": ["embedded"]}, "profile: 'embedded' is not under profiles; known: none"),
        ({"profiles.embedded": [1]}, "profiles.embedded: expected a mapping of sections, got [1]"),
        ({"seed": ABSENT}, "seed: is missing"),
        ({"profile": ["embedded"]}, "profile: ['embedded'] is not under profiles"),
        ({"profiles": {1: {}}}, "profile: 'embedded' is not under profiles; known: 1"),
    ],
)
def test_bad_top_level_is_refused(tmp_path, refused, changes, message):
    path = written(tmp_path, changes)
    assert refused(load_params, path).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "expected a mapping with profile, seed, sections and profiles at the top"),
        (b"- a\n", "expected a mapping with profile, seed, sections and profiles at the top"),
        (b"seed: [1\nb: }\n", "not valid YAML: "),
        (b"profiles:\n\t- b\n", "not valid YAML: "),
        (b"profile: \xff\n", "not valid YAML: "),
        (b"seed: 0\nprofile: a\nprofiles: {}\n", "profile: 'a' is not under profiles"),
        (b"1: 2\nsede: 0\n", "unknown key"),
        (b"1: 2\n", "unknown key"),
    ],
)
def test_file_that_is_no_parameter_file_is_refused(tmp_path, refused, content, problem):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    assert refused(load_params, path).startswith(f"{path}: {problem}")


def test_missing_file_says_where_to_run(tmp_path, refused):
    path = tmp_path / "params.yaml"
    message = refused(load_params, path)
    assert message == f"{path}: not found; run `dvc repro configure`"
