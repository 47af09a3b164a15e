"""Foregrounds from tags: of each image the segment that looks like what all images of its class have in common.

EM-Paste (under review at TMLR), section 3.1, algorithm 1, "F-EM". The first choice of an image is among the segments nearest
to the centre of its class activation map; the mean look of the chosen segments then chooses anew, for a few rounds.

n images of one class, m_i segments of image i, D features; P segments of one image, S superpixels, A classes it is tagged with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from wsis.errors import InputError
from wsis.evidence.cam import finite
from wsis.ops.cells import segment_windows

__all__ = [
    "Round",
    "SegmentStatistics",
    "cam_centroid",
    "eligible_segments",
    "foreground_em",
    "foreground_rounds",
    "nearest_segments",
    "segment_patches",
    "segment_statistics",
    "shrunk_covariance",
]

GREY = 117
"""What surrounds a segment in its patch."""

Distance = Literal["cosine", "mahalanobis"]

_CELLS = 1 << 20
"""Patch pixels rendered at a time: 50 MB."""
_TIE = 1e-5
"""Relative to 1 + distance: equal features differ by less, in how a product of matrices is blocked."""


class Round(NamedTuple):
    """One round over the n images of a class."""

    kept: Tensor
    """(n,) bool, the images whose previous choice made the mean."""
    chosen: Tensor
    """(n,) int64, the candidate nearest to that mean, -1 in an image without candidates."""
    distances: Tensor
    """(n,) float32, its distance to the mean: 1 - cosine, or Mahalanobis; infinite in an image without candidates."""


class SegmentStatistics(NamedTuple):
    """Size and place of an image's segments."""

    shares: Tensor
    """(P,) float32, area over the label map's."""
    distances: Tensor
    """(A,P) float32, mean distance in pixels of a segment's pixels to each point; infinite for a segment without pixels."""


def foreground_em(
    features: Sequence[Tensor],
    start: Tensor,
    rounds: int = 2,
    keep: float = 0.5,
    distance: Distance = "cosine",
) -> Tensor:
    """Choose the segment of each image that looks most like the class (EM-Paste, algorithm 1, steps 2 and 3).

    Each round takes the mean of the chosen features, keeps the images whose choice is nearest to it, takes the mean of those
    and chooses in every image the candidate nearest to that. Candidates as near as the nearest, to five digits, are tied, and
    the first of them is chosen.

    Args:
        features: of each of n images of one class, (m_i,D) of its candidates; an image may have none.
        start: (n,) int, the first choice in each image; -1 where there is none, which leaves it out of the first mean.
        rounds: of the two steps.
        keep: share of the images whose choices make the mean, rounded up.
        distance: "cosine" to the mean of the features at unit length, as the authors' code; "mahalanobis" under the covariance
            of `shrunk_covariance`, as the text, where the authors' pseudo-inverse puts whatever leaves the span of the chosen
            features at distance 0. Clutter in every image that varies less than the class misleads the second, not the first:
            1 % against 100 % right of 100 invented images, from a start with 58 %.

    Returns:
        (n,) int64, the choice in each image, -1 without candidates. Where no image has a first choice, no image has any.

    Raises:
        InputError: the arguments do not fit together, or features are not finite.
    """
    history = foreground_rounds(features, start, rounds, keep, distance)
    return history[-1].chosen if history else start.long()


@torch.no_grad()
def foreground_rounds(
    features: Sequence[Tensor],
    start: Tensor,
    rounds: int = 2,
    keep: float = 0.5,
    distance: Distance = "cosine",
) -> list[Round]:
    """Every round of `foreground_em`, which see; none where no image has a first choice."""
    _check(features, start, keep, distance)
    if not (start >= 0).any():
        return []
    counts = torch.tensor([len(rows) for rows in features], device=features[0].device)
    begin, images = (
        counts.cumsum(0) - counts,
        torch.arange(len(counts), device=counts.device).repeat_interleave(counts),
    )
    lengths = torch.cat(
        [torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32) for rows in features]
    )
    if not lengths.isfinite().all():
        image = int(images[~lengths.isfinite()][0])
        raise InputError(
            f"features of image {image} hold NaN or infinity; check the network that made them"
        )
    fit = {"cosine": _cosine, "mahalanobis": _mahalanobis}[distance]
    chosen, history = start.to(counts), []
    for _ in range(rounds):
        kept = chosen >= 0
        rows = torch.stack(
            [some[c] for some, c in zip(features, chosen.tolist(), strict=True) if c >= 0]
        ).float()
        nearest = fit(rows)(rows).sort(stable=True).indices[: math.ceil(round(keep * len(rows), 6))]
        kept = torch.zeros_like(kept).index_fill_(0, kept.nonzero()[nearest, 0], True)
        measure = fit(rows[nearest])
        distances = torch.cat(
            [measure(some.float()) for some in features]
        )  # a copy of all would double the memory
        first, least = _least(distances, images, len(counts))
        chosen = torch.where(counts > 0, first - begin, -1)
        history += [Round(kept, chosen, least)]
    return history


def shrunk_covariance(rows: Tensor) -> Tensor:
    """Covariance drawn towards a multiple of the identity, so that it has an inverse when there are fewer rows than columns.

    Oracle approximating shrinkage: Chen, Wiesel, Eldar and Hero, IEEE TSP 2010, eq. 23. Rows that are all equal, or a single
    one, have the identity, which makes Mahalanobis distance Euclidean.

    Args:
        rows: (N,D), N at least 1.

    Returns:
        (D,D) float64, positive definite.
    """
    count, size = rows.shape
    centred = rows.double() - rows.double().mean(0)
    covariance = centred.T @ centred / count
    identity = torch.eye(size, dtype=torch.float64, device=rows.device)
    trace, squares = covariance.trace(), covariance.square().sum()
    if trace <= 1e-12 * rows.double().square().sum() / count:
        return identity
    excess = (count + 1 - 2 / size) * (squares - trace**2 / size)
    shrinkage = ((1 - 2 / size) * squares + trace**2) / excess if excess > 0 else 1.0
    shrinkage = min(float(shrinkage), 1.0)
    return (1 - shrinkage) * covariance + shrinkage * trace / size * identity


def cam_centroid(maps: Tensor, share: float = 0.2, stride: float = 1.0) -> Tensor:
    """Centre of gravity of the highest cells of class activation maps (EM-Paste, section 3.1, c_i).

    Each map is that of a class the image is tagged with; the authors' code takes the class of the highest score, which loses
    the others. The logit maps of `wsis.parts.classifier` serve as they are: its Grad-CAM is their positive part, less the
    bias, times a constant, whatever its pooling. Cells at a map's minimum never count, so that the zeros of a map with
    little positive evidence do not draw its centre to the image's; a constant map has the image's centre.

    Args:
        maps: (...,H,W), without padding; cell (i, j) has its centre at ((j + .5), (i + .5)) x stride.
        share: of the cells that count, rounded up, and cells as high as the last of them.
        stride: pixels per cell.

    Returns:
        (...,2) float32, (x, y) in pixels.

    Raises:
        InputError: a map is not finite, or `share` is not in (0, 1].
    """
    _check_share("share", share)
    height, width = finite(maps).shape[-2:]
    flat = maps.flatten(-2).float()
    floor = flat.topk(math.ceil(round(share * height * width, 6)), -1).values[..., -1:]
    counted = (flat >= floor) & (flat > flat.amin(-1, keepdim=True))
    counted |= ~counted.any(-1, keepdim=True)
    y, x = (torch.arange(cells, device=maps.device) + 0.5 for cells in (height, width))
    points = torch.stack([x.repeat(height), y.repeat_interleave(width)], -1)
    return counted.float() @ points / counted.sum(-1, keepdim=True) * stride


def segment_statistics(labels: Tensor, members: Tensor, points: Tensor) -> SegmentStatistics:
    """Measure segments by their superpixels, without a mask of any (EM-Paste, section 3.1, dist(O, c)).

    Args:
        labels: (H,W) int, superpixel of each pixel; negative where there is none.
        members: (P,S) bool, the superpixels of each segment.
        points: (A,2), (x, y) in pixels.

    Raises:
        InputError: a label has no column in `members`.
    """
    count = members.shape[1]
    if int(labels.max()) >= count:
        raise InputError(
            f"the label map holds superpixel {int(labels.max())}, members only {count}; give those of this map"
        )
    y, x = (torch.arange(n, device=labels.device, dtype=torch.float64) + 0.5 for n in labels.shape)
    px, py = points.to(x).reshape(-1, 2, 1, 1).unbind(1)
    values = F.pad(torch.hypot(x - px, y[:, None] - py), (0, 0, 0, 0, 0, 1), value=1).flatten(
        1
    )  # the last counts pixels
    bins = torch.where(labels < 0, count, labels).long().flatten().expand(len(values), -1)
    sums = values.new_zeros(len(values), count + 1).scatter_add_(1, bins, values)[:, :count]
    totals = sums.float() @ members.float().T
    distances, areas = totals[:-1], totals[-1]
    distances = (distances / areas.clamp(min=1)).masked_fill(areas == 0, torch.inf)
    return SegmentStatistics(areas / labels.numel(), distances)


def eligible_segments(
    shares: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    smallest: float = 0.01,
    largest: float = 0.8,
    margin: float = 10 / 299,
) -> Tensor:
    """Which segments may be a first choice, (P,) bool; defaults are the authors' code's, whose images are 299 pixels wide.

    Args:
        shares: (P,), from `segment_statistics`.
        boxes: (P,4) xyxy in pixels.
        size: (H, W) of the image.
        smallest: least share of the image.
        largest: greatest share of the image.
        margin: share of the image's width that a box leaves free at least, and likewise of its height.
    """
    sides = boxes.new_tensor([size[1], size[0]], dtype=torch.float64)
    free = sides - (boxes[:, 2:] - boxes[:, :2])
    return (shares >= smallest) & (shares <= largest) & (free >= margin * sides).all(1)


def nearest_segments(distances: Tensor, eligible: Tensor, count: int = 3) -> Tensor:
    """The segments among which a classifier makes the first choice, nearest first (EM-Paste, algorithm 1, line 5).

    Args:
        distances: (A,P), from `segment_statistics`.
        eligible: (P,) bool.
        count: segments for each point.

    Returns:
        (A,count) int64, -1 where there are no more.
    """
    ranked = distances.masked_fill(~eligible, torch.inf).sort(dim=1, stable=True)
    nearest = ranked.indices.masked_fill(ranked.values.isinf(), -1)[:, :count]
    return F.pad(nearest, (0, count - nearest.shape[1]), value=-1)


def segment_patches(
    image: Tensor, labels: Tensor, members: Tensor, boxes: Tensor, side: int = 224
) -> Tensor:
    """Render segments on grey, cut to their boxes and stretched to a square, as a classifier is shown them.

    Colours are bilinear; where a patch is smaller than the box, they are means. Outlines are sharp, the authors' are bilinear.

    Args:
        image: (3,H,W) uint8.
        labels: (H,W) int, superpixel of each pixel; negative where there is none.
        members: (K,S) bool, the superpixels of each segment.
        boxes: (K,4) xyxy in pixels.
        side: of a patch in pixels.

    Returns:
        (K,3,side,side) uint8.
    """
    patches = image.new_full((len(boxes), 3, side, side), GREY)
    step, pixels = max(_CELLS // side**2, 1), image[None].float()
    for i in range(0, len(boxes), step):
        at = boxes[i : i + step].float()
        belongs = segment_windows(labels, members[i : i + step], at, (side, side))
        colours = (
            roi_align(pixels, [at], side, sampling_ratio=-1, aligned=True).round().to(torch.uint8)
        )
        patches[i : i + step] = torch.where(belongs[:, None], colours, GREY)
    return patches


def _cosine(rows: Tensor) -> Callable[[Tensor], Tensor]:
    """1 - cosine to the mean of rows (N,D) at unit length, which ranks as the distance to that mean does."""
    direction = F.normalize(F.normalize(rows).mean(0), dim=0)
    return lambda some: (
        1 - some @ direction / torch.linalg.vector_norm(some, dim=1).clamp(min=1e-12)
    )


def _mahalanobis(rows: Tensor) -> Callable[[Tensor], Tensor]:
    mean, root = rows.mean(0), torch.linalg.cholesky(shrunk_covariance(rows))
    identity = torch.eye(len(root), dtype=root.dtype, device=root.device)
    whiten = torch.linalg.solve_triangular(root, identity, upper=False).float().T
    return lambda some: ((some - mean) @ whiten).norm(dim=1)


def _least(values: Tensor, images: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of each of `count` images the first place of its least value, and that value, infinite where there is none."""
    least = values.new_full((count,), torch.inf).scatter_reduce_(0, images, values, "amin")
    tied = (values <= least[images] + _TIE * (1 + least[images])).nonzero()[:, 0]
    first = images.new_full((count,), len(values)).scatter_reduce_(0, images[tied], tied, "amin")
    return first, least


def _check(features: Sequence[Tensor], start: Tensor, keep: float, distance: str) -> None:
    if distance not in ("cosine", "mahalanobis"):
        raise InputError(f'distance {distance!r}: choose "cosine" or "mahalanobis"')
    _check_share("keep", keep)
    if start.shape != (len(features),):
        raise InputError(
            f"start is {tuple(start.shape)} for {len(features)} images; give one index each"
        )
    odd = [
        i
        for i, rows in enumerate(features)
        if rows.ndim != 2 or rows.shape[1] != features[0].shape[-1]
    ]
    if odd:
        raise InputError(
            f"features of image {odd[0]} are {tuple(features[odd[0]].shape)}; give (m,D) with the same D for all"
        )
    wrong = [
        i
        for i, (rows, first) in enumerate(zip(features, start.tolist(), strict=True))
        if not -1 <= first < len(rows)
    ]
    if wrong:
        raise InputError(
            f"start of image {wrong[0]} is {int(start[wrong[0]])}, which has {len(features[wrong[0]])} candidates; "
            "give an index of one, or -1 for none"
        )


def _check_share(name: str, share: float) -> None:
    if not 0 < share <= 1:
        raise InputError(f"{name} {share}: choose more than 0 and at most 1")
