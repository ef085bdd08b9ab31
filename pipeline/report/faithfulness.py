"""Whether the pixels that attention ranks first carry the class: deletion and insertion.

RISE (Petsiuk et al., BMVC 2018, arXiv 1806.07421), section 4.3. Attention mining minimises a soft form of deletion, so
these scores support the others and never replace them.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from pipeline.data.samples import Sample
from pipeline.evaluation.passes import concatenate_scores, pair_attention
from pipeline.model.fcn8s import FCN8s


@torch.no_grad()
def evaluate_faithfulness(
    model: FCN8s, batches: Iterable[Sample], device: torch.device, *, num_steps: int
) -> dict[str, Tensor]:
    """Deletion and insertion of the ground-truth pairs of a data set.

    Args:
        model: in eval mode.
        batches: as many masked images pass the network together as a batch has images.
        num_steps: see `deletion_and_insertion`.

    Returns:
        deletion_auc, insertion_auc, class_index and image_index, one value per pair; empty without a batch.
    """
    scores = []
    for batch in batches:
        image, labels = batch.image.to(device), batch.image_labels.to(device)
        features = model.features(image.contiguous(memory_format=torch.channels_last))
        pairs, maps, _ = pair_attention(model, features.conv5_3, labels, (image.shape[2], image.shape[3]))
        deletion, insertion = deletion_and_insertion(
            model, image[pairs.image_index], maps, pairs.class_index, num_steps=num_steps, batch_size=len(image)
        )
        scores.append(
            {
                "deletion_auc": deletion,
                "insertion_auc": insertion,
                "class_index": pairs.class_index,
                "image_index": batch.sample_index[pairs.image_index.cpu()],
            }
        )
    return concatenate_scores(scores)


@torch.no_grad()
def deletion_and_insertion(
    model: FCN8s, image: Tensor, attention: Tensor, class_index: Tensor, *, num_steps: int, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Mean probability of a pair's class while pixels vanish (lower is better) or appear (higher is better).

    Pixels go by attention, highest first, ties in reading order, in `num_steps` steps that are equal to within a
    pixel. A missing pixel shows the data mean, for insertion too, where the paper starts from a blurred image. The
    mean is the area under the curve from 0 % to 100 % of the pixels, by the trapezoid rule.

    Args:
        model: in eval mode.
        image: (N, 3, H, W) normalised, so that 0 is the data mean; one per pair.
        attention: (N, H, W).
        class_index: (N,) int64 in [0, C).
        batch_size: images that pass the network together.

    Returns:
        Deletion and insertion, each (N,) float32 in [0, 1].
    """
    num_points, num_pixels = num_steps + 1, attention.shape[1] * attention.shape[2]
    rank = attention.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1).view_as(attention)
    curves = []
    for index in torch.split(torch.arange(len(image) * num_points, device=image.device), batch_size):
        pair, step = index // num_points, index % num_points
        reached = rank[pair] * num_steps < (step * num_pixels)[:, None, None]
        shown = [image[pair] * pixels[:, None] for pixels in (~reached, reached)]
        curves.append(torch.stack([_class_probs(model, pictures, class_index[pair]) for pictures in shown]))
    points = torch.cat(curves, dim=1).view(2, len(image), num_points)
    deletion, insertion = torch.trapezoid(points, dx=1 / num_steps)
    return deletion, insertion


def _class_probs(model: FCN8s, image: Tensor, class_index: Tensor) -> Tensor:
    _, class_logits = model(image.contiguous(memory_format=torch.channels_last), segmentation=False)
    return class_logits.gather(1, class_index[:, None])[:, 0].sigmoid()  # type: ignore[no-any-return]
