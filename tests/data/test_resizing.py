import pytest
import torch

from pipeline.data.resizing import resized_mask

SCALES = [0.2, 0.25, 1 / 3, 0.375, 0.5, 0.6, 0.75, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("side", [60, 97, 375, 500])
def test_pixels_are_those_whose_centres_are_nearest(side, scale):
    """Coordinates as labels: none is more than half a source pixel off, and on average they are not off at all."""
    size = round(side * scale)
    coordinates = torch.arange(side).double()
    centres = (torch.arange(size) + 0.5).double() * side / size - 0.5
    for found in (
        resized_mask(coordinates.expand(3, side), (5, size))[0],
        resized_mask(coordinates[:, None].expand(side, 3), (size, 5))[:, 0],
    ):
        assert found.shape == (size,)
        assert (found - centres).abs().max() <= 0.5 + 1e-9
        assert abs(float((found - centres).mean())) < 0.05


def test_flipped_masks_are_resized_alike_save_halfway():
    mask = torch.randint(0, 256, (33, 50), dtype=torch.uint8)
    for size in ((99, 150), (11, 70), (33, 50)):  # odd steps have no halfway
        assert torch.equal(resized_mask(mask.flip(0), size), resized_mask(mask, size).flip(0))
    assert torch.equal(resized_mask(mask, (33, 50)), mask)


def test_halfway_takes_turns():
    row = torch.arange(8)[None]
    assert resized_mask(row, (1, 4)).tolist() == [[0, 3, 4, 7]]
    assert resized_mask(row, (1, 16)).tolist() == [[0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]]


def test_single_pixels():
    assert resized_mask(torch.tensor([[7]]), (2, 3)).tolist() == [[7, 7, 7], [7, 7, 7]]
    assert resized_mask(torch.arange(9).view(3, 3), (1, 1)).tolist() == [[4]]
