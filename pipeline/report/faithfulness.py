"""Whether the pixels that attention ranks first carry the class: deletion and insertion.

RISE (Petsiuk et al., BMVC 2018, arXiv 1806.07421), section 4.3. Attention mining minimises a soft form of deletion, so
these scores support the others and never replace them.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from pipeline.data.samples import Sample
from pipeline.evaluation.passes import concatenate_scores, pair_attention
from pipeline.gain.view import View, resized, seen_size
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
        view = View.of(model, image.contiguous(memory_format=torch.channels_last))
        pairs, maps, _ = pair_attention(view, labels)
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

    Pixels go by attention, highest first, in `num_steps` steps that are equal to within a pixel. A missing pixel shows
    the data mean, for insertion too, where the paper starts from a blurred image. The mean is the area under the curve
    from 0 % to 100 % of the pixels, by the trapezoid rule.

    Of pixels that tie, and half of a guided map may be exactly 0, attention ranks none before another. They count as
    what is expected of each: between the image before a group of ties and the image after it the curve is a straight
    line, as in ROC curves. So no order of the pixels matters, and the network sees only images that the map defines.

    Args:
        model: in eval mode.
        image: (N, 3, H, W) normalised, so that 0 is the data mean; one per pair.
        attention: (N, H, W).
        class_index: (N,) int64 in [0, C).
        batch_size: images that pass the network together.

    Returns:
        Deletion and insertion, each (N,) float32 in [0, 1].
    """
    num_pixels = attention.shape[1] * attention.shape[2]
    ranked = attention.flatten(1).sort(dim=1, descending=True, stable=True)
    rank = ranked.indices.argsort(dim=1).view_as(attention)
    before, after, share = _tied_steps(ranked.values, num_steps)
    first = torch.arange(len(image), device=image.device)[:, None] * (num_pixels + 1)
    steps = torch.stack([first + before, first + after])
    points, where = steps.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    curves = [image.new_zeros(2, 0)]
    for point in torch.split(points, batch_size):
        pair, count = point // (num_pixels + 1), point % (num_pixels + 1)
        reached = rank[pair] < count[:, None, None]
        shown = [image[pair] * pixels[:, None] for pixels in (~reached, reached)]
        curves.append(torch.stack([_class_probs(model, pictures, class_index[pair]) for pictures in shown]))
    start, end = torch.cat(curves, dim=1)[:, where].unbind(dim=1)  # (2, N, num_steps + 1) each
    deletion, insertion = torch.trapezoid(torch.lerp(start, end, share.to(start.dtype)), dx=1 / num_steps)
    return deletion, insertion


def _tied_steps(values: Tensor, num_steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where each step falls among the groups of equal values.

    Args:
        values: (N, P) sorted, highest first.

    Returns:
        (N, num_steps + 1) each: how many pixels lie before the group that the step ends in, how many up to its end, and
        the share of the group in [0, 1] that the step has reached; 1 where a step ends with a group.
    """
    num_pixels = values.shape[1]
    # Rounded up, so that the last step reaches every pixel.
    count = -(-torch.arange(num_steps + 1, device=values.device) * num_pixels // num_steps)
    count = count.expand(len(values), -1).contiguous()
    last = values.gather(1, (count - 1).clamp(min=0))
    before, after = (torch.searchsorted(-values, -last, right=right) for right in (False, True))
    after = torch.where(count == 0, 0, after)
    before = torch.where((count == 0) | (count == after), after, before)
    return before, after, (count - before) / (after - before).clamp(min=1)


def _class_probs(model: FCN8s, image: Tensor, class_index: Tensor) -> Tensor:
    seen = resized(image.contiguous(memory_format=torch.channels_last), seen_size(image, model.scale))
    _, class_logits = model(seen, segmentation=False)
    return class_logits.gather(1, class_index[:, None])[:, 0].sigmoid()  # type: ignore[no-any-return]
