"""The embedded data set: drawings in PASCAL VOC layout in which a class's habitual context betrays it.

An object stands on its habitual ground (a boat on water) with probability `context_strength`, and the ground is easier
to see than the object, whose colours say nothing: a classifier that is shown labels alone learns the ground. Two
counterfactual splits expose that: objects on another class's ground, and grounds without their object. Masks cover the
object alone, so attention guided by them can cure it. Empty images on a neutral ground make "no class" a valid answer.

Every image depends on nothing but the seed, its split and its index; a split can grow without changing earlier images.
"""

import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from pipeline.base.errors import PipelineError
from pipeline.base.sections import EmbeddedData
from pipeline.data import voc
from pipeline.data.images import save_jpeg, save_mask
from pipeline.datasets.drawing import grounds, objects, painting
from pipeline.datasets.drawing.painting import Parts
from pipeline.datasets.parallel import parallel_map

CLASS_NAMES: tuple[str, ...] = tuple(objects.OBJECTS)  # mask value = index + 1
HABITUAL_GROUNDS: dict[str, Callable[[Generator, int], Image.Image]] = {
    "aeroplane": grounds.sky,
    "boat": grounds.water,
    "car": grounds.road,
    "tree": grounds.meadow,
    "cactus": grounds.desert,
    "snowman": grounds.snow,
}
OBJECT_WITHOUT_CONTEXT, CONTEXT_WITHOUT_OBJECT = voc.COUNTERFACTUAL_SPLITS
OVERHANG = 0.1  # share of its extent by which an object may leave the image, or its half of it

Mask = NDArray[np.uint8]
_Region = tuple[float, float, float, float]  # left, top, right, bottom in fractions of the image side


class Scene(NamedTuple):
    """What to draw. Both hold class indices; two different grounds meet in one picture, no ground means neutral."""

    objects: tuple[int, ...]
    grounds: tuple[int, ...]


def split_sizes(recipe: EmbeddedData) -> dict[str, int]:
    """Images in each split."""
    counterfactual = dict.fromkeys(voc.COUNTERFACTUAL_SPLITS, recipe.num_counterfactual)
    return {"train": recipe.num_train, "val": recipe.num_val, "test": recipe.num_test, **counterfactual}


def draw_dataset(
    root: Path,
    recipe: EmbeddedData,
    *,
    seed: int,
    num_workers: int = 1,
    on_image: Callable[[], None] = lambda: None,
) -> None:
    """Draw all five splits into `root`, which must be empty or absent.

    Writes JPEGImages/<id>.jpg, SegmentationClass/<id>.png (0 background, 1..6 classes, 255 void), Annotations/<id>.xml
    (a box around the visible part of each object, not counting the void ring), one id a line in
    ImageSets/Segmentation/<split>.txt, classes.txt, and contexts.csv with the classes whose ground an image shows.

    Args:
        recipe: sizes of the splits, and what the images have in common. An occluded object loses 10 to 35 % of its
            area; `empty_fraction` and `multi_object_fraction` concern train, val and test.
        num_workers: processes that draw, see `parallel_map`. No file depends on it.
        on_image: called in this process as images finish.

    Raises:
        PipelineError: `root` is a file or not empty; a process that draws was killed.
        OSError: an image cannot be written.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise PipelineError(f"{root}: not an empty folder, nothing drawn; remove it, or draw into another one")
    voc.make_folders(root)
    sizes = split_sizes(recipe)
    examples = [(split, index) for split, size in sizes.items() for index in range(size)]
    scenes: dict[str, Scene] = {}
    with parallel_map(num_workers) as map_images:
        for image_id, scene in map_images(partial(_write_example, root, recipe, seed), examples):
            scenes[image_id] = scene
            on_image()
    ids = {split: [_image_id(split, index) for index in range(size)] for split, size in sizes.items()}
    voc.write_lists(root, CLASS_NAMES, ids)
    rows = [f"{name},{' '.join(CLASS_NAMES[k] for k in scene.grounds)}\n" for name, scene in scenes.items()]
    (root / "contexts.csv").write_text("".join(["image,contexts\n", *rows]), encoding="utf-8")


def _write_example(root: Path, recipe: EmbeddedData, seed: int, example: tuple[str, int]) -> tuple[str, Scene]:
    """Draw one image, given by its split and its index there, and save it, its mask and its boxes."""
    image_id, (scene, image, mask, boxes) = _image_id(*example), _draw_image(recipe, seed, *example)
    save_jpeg(image, voc.image_path(root, image_id), quality=recipe.jpeg_quality)
    save_mask(mask, voc.mask_path(root, image_id))
    voc.write_boxes(root, image_id, boxes, height=image.height, width=image.width)
    return image_id, scene


def _image_id(split: str, index: int) -> str:
    return f"{split}_{index:05d}"


def _draw_image(
    recipe: EmbeddedData, seed: int, split: str, index: int
) -> tuple[Scene, Image.Image, Mask, list[voc.Box]]:
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index])
    turn = _classes_in_turn(seed, split, index)
    if split == OBJECT_WITHOUT_CONTEXT:
        scene = Scene(turn[:1], (_other_class(rng, turn[0]),))
    elif split == CONTEXT_WITHOUT_OBJECT:
        scene = Scene((), turn[:1])
    else:
        scene = _sample_scene(rng, turn, recipe)
    return scene, *_draw_scene(rng, scene, recipe)


# ---- what to draw ----------------------------------------------------------------------------------------------------


def _classes_in_turn(seed: int, split: str, index: int) -> tuple[int, ...]:
    """All classes, starting with the one whose turn it is: every class once in each block of six images."""
    block, position = divmod(index, len(CLASS_NAMES))
    rng = np.random.default_rng([seed, zlib.crc32(f"{split} classes".encode()), block])
    return tuple(np.roll(rng.permutation(len(CLASS_NAMES)), -position).tolist())


def _other_class(rng: Generator, class_index: int) -> int:
    return int(class_index + rng.integers(1, len(CLASS_NAMES))) % len(CLASS_NAMES)


def _sample_scene(rng: Generator, turn: tuple[int, ...], recipe: EmbeddedData) -> Scene:
    """Nothing, one object, two of one class on one ground, or two of different classes each on its own ground."""

    def ground(class_index: int) -> int:
        return class_index if rng.random() < recipe.context_strength else _other_class(rng, class_index)

    if rng.random() < recipe.empty_fraction:
        return Scene((), ())
    if rng.random() >= recipe.multi_object_fraction:
        return Scene(turn[:1], (ground(turn[0]),))
    if rng.random() < 0.5:
        return Scene((turn[0], turn[0]), (ground(turn[0]),))
    return Scene(turn[:2], tuple(dict.fromkeys((ground(turn[0]), ground(turn[1])))))


# ---- drawing it ------------------------------------------------------------------------------------------------------


def _draw_scene(rng: Generator, scene: Scene, recipe: EmbeddedData) -> tuple[Image.Image, Mask, list[voc.Box]]:
    """The picture, RGB (size, size), its mask (size, size): 0 background, 1..6 classes, 255 void, and its boxes."""
    upright, border = bool(rng.random() < 0.5), rng.uniform(0.43, 0.57)
    canvas = _draw_grounds(rng, scene, recipe.image_size, upright, border)
    instances = Image.new("L", canvas.size)
    tilt = rng.uniform(-1, 1)
    regions = _halves(upright, border) if len(scene.objects) == 2 else ((0, 0, 1, 1),)
    for number, (class_index, region) in enumerate(zip(scene.objects, regions, strict=False), start=1):
        parts = _position(rng, objects.OBJECTS[CLASS_NAMES[class_index]](rng), region, recipe)
        painting.paint(canvas, parts, tilt=tilt)
        instances.paste(number, mask=painting.silhouette(parts, canvas.width))
        if rng.random() < recipe.occlusion_fraction:
            hiding = objects.occluder(rng, parts)
            painting.paint(canvas, hiding, tilt=tilt)
            instances.paste(0, mask=painting.silhouette(hiding, canvas.width))
    image = canvas.resize((recipe.image_size, recipe.image_size), Image.Resampling.LANCZOS)
    visible = [_visible(np.asarray(instances), number) for number in range(1, len(scene.objects) + 1)]
    return painting.daylight(rng, image), _class_mask(visible, scene.objects, recipe), _boxes(visible, scene.objects)


def _draw_grounds(rng: Generator, scene: Scene, size: int, upright: bool, border: float) -> Image.Image:
    if not scene.grounds:
        return grounds.neutral(rng, size)
    first, *rest = (_draw_ground(rng, ground, size) for ground in scene.grounds)
    for second in rest:
        grounds.join(rng, first, second, upright, border)
    return first


def _draw_ground(rng: Generator, class_index: int, size: int) -> Image.Image:
    ground = HABITUAL_GROUNDS[CLASS_NAMES[class_index]]
    image = ground(rng, size)
    if ground is not grounds.sky:  # pebbles do not float
        grounds.scatter_stones(rng, image)
    return image


def _halves(upright: bool, border: float) -> tuple[_Region, _Region]:
    if upright:
        return (0, 0, border, 1), (border, 0, 1, 1)
    return (0, 0, 1, border), (0, border, 1, 1)


def _position(rng: Generator, parts: Parts, region: _Region, recipe: EmbeddedData) -> Parts:
    """The parts at a random size and rotation, at a random place of the region."""
    longest = float(np.exp(rng.uniform(*np.log(recipe.object_scale))))
    angle, mirrored = rng.uniform(-recipe.max_rotation, recipe.max_rotation), bool(rng.random() < 0.5)
    parts = painting.place(parts, 0, 0, longest=longest, angle=angle, mirrored=mirrored)
    low, high = painting.extent(parts)
    room = (high - low) * (0.5 - OVERHANG)
    start, end = np.array(region[:2]) + room, np.array(region[2:]) - room
    start, end = np.minimum(start, (start + end) / 2), np.maximum(end, (start + end) / 2)
    shift = rng.uniform(start, end).astype(np.float32)
    return [part._replace(points=part.points + shift) for part in parts]


def _visible(instances: Mask, number: int) -> Image.Image:
    """(size, size), 1 where instance `number` shows; from instance numbers at SUPERSAMPLE times the resolution."""
    coverage = Image.fromarray((instances == number).astype(np.uint8) * 255).reduce(painting.SUPERSAMPLE)
    return Image.fromarray((np.asarray(coverage) > 127).astype(np.uint8))


def _class_mask(visible: list[Image.Image], classes: tuple[int, ...], recipe: EmbeddedData) -> Mask:
    """Class values where the objects show, with void along every outline."""
    mask = np.zeros((recipe.image_size, recipe.image_size), np.uint8)
    ring = np.zeros(mask.shape, bool)
    for shape, class_index in zip(visible, classes, strict=True):
        mask[np.asarray(shape) > 0] = class_index + 1
        ring |= painting.outline(shape, recipe.void_border)
    mask[ring] = voc.IGNORE_INDEX
    return mask


def _boxes(visible: list[Image.Image], classes: tuple[int, ...]) -> list[voc.Box]:
    """The tight box of each object of which a pixel shows."""
    extents = ((CLASS_NAMES[k], shape.getbbox()) for shape, k in zip(visible, classes, strict=True))
    return [voc.Box(name, *extent) for name, extent in extents if extent]
