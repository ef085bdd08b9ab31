"""How far attention is from guidance: the localisation losses of the field, one function each, by name in DISTANCES.

Squared is Eq. 7 of GAIN (arXiv 1802.10171). The others are compared by Rao et al., "Studying How to Efficiently and
Effectively Guide Models with Explanations" (ICCV 2023, arXiv 2303.11932, section on localisation losses), on boxes, for
many ways to attribute; their equations are repeated here with H for the mask.

Legend: N pairs, (h, w) the cells of a map. Every distance takes
    attention: A (N, h, w) in [0, 1], the map over its maximum (`attention.normalise_attention`), at least float32;
    mask: H (N, h, w) in [0, 1], `losses.pixel_supervision`;
    weight: q (N, h, w) in [0, 1], the share of each cell that is known: 0 where all of it is void or beyond the image;
    reduction: `mean` divides the sum over cells by the weight that was summed, `sum` does not;
and returns one value at least 0 per pair, (N,). All are finite, with finite gradients, for dead maps and void images.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pipeline.base.attention import GuidanceDistance, GuidanceReduction

FAINTEST = 1e-6  # share of a map's maximum: less counts as this much, where a logarithm or a quotient needs more than 0


def squared(attention: Tensor, mask: Tensor, weight: Tensor, reduction: GuidanceReduction) -> Tensor:
    """Eq. 7 of GAIN: sum of q (A - H)^2. The mean is in [0, 1].

    Faint attention all over the ground costs next to nothing, though it is the sum over cells that classifies.
    """
    return _over_cells((attention - mask).abs() ** 2, weight, reduction)


def absolute(attention: Tensor, mask: Tensor, weight: Tensor, reduction: GuidanceReduction) -> Tensor:
    """L1 of Rao et al. (after GRADIA, Gao et al., 2022): sum of q |A - H|. The mean is in [0, 1]."""
    return _over_cells((attention - mask).abs(), weight, reduction)


def energy(attention: Tensor, mask: Tensor, weight: Tensor, reduction: GuidanceReduction) -> Tensor:
    """Energy loss of Rao et al.: 1 - sum of q H A / sum of q A, the energy pointing game as a loss. In [0, 1].

    A quotient already: the reduction changes nothing, nor does the scale of A, so that the map need not be normalised
    for it. It asks where attention is, never that it fill the object. Rao et al. use 1 minus or minus the share; the
    gradients are the same. A map that attends to nothing known has 1.
    """
    del reduction
    inside, everywhere = (attention * mask * weight).sum(dim=(1, 2)), (attention * weight).sum(dim=(1, 2))
    return 1.0 - inside / torch.where(everywhere > FAINTEST, everywhere, 1.0)


def rrr(attention: Tensor, mask: Tensor, weight: Tensor, reduction: GuidanceReduction) -> Tensor:
    """RRR* of Rao et al. (after Ross et al., arXiv 1703.03717): sum of q (1 - H) A^2. The mean is in [0, 1].

    It punishes attention on the ground and asks nothing of the object's cells. The paper's is the sum; the mean divides
    it by all cells, those of the object too.
    """
    return _over_cells((1.0 - mask) * attention**2, weight, reduction)


def ppce(attention: Tensor, mask: Tensor, weight: Tensor, reduction: GuidanceReduction) -> Tensor:
    """PPCE, per-pixel cross entropy of Rao et al. (after HAICS, Shen et al., 2021): sum of q H (-log A).

    It asks for attention on all of the object and punishes none on the ground. The paper's is the mean over the
    object's cells, in [0, 13.8] here: attention below FAINTEST counts as FAINTEST, whose gradient is 0 (torch's binary
    cross entropy, which the paper's code uses, ends at 100).
    """
    return _over_cells(-attention.clamp(min=FAINTEST).log(), mask * weight, reduction)


Distance = Callable[[Tensor, Tensor, Tensor, GuidanceReduction], Tensor]
DISTANCES: Mapping[GuidanceDistance, Distance] = {
    "squared": squared,
    "absolute": absolute,
    "energy": energy,
    "rrr": rrr,
    "ppce": ppce,
}


def _over_cells(values: Tensor, weight: Tensor, reduction: GuidanceReduction) -> Tensor:
    """(N, h, w) to (N,)."""
    total = (values * weight).sum(dim=(1, 2))
    return total / weight.sum(dim=(1, 2)).clamp(min=1e-6) if reduction == "mean" else total
