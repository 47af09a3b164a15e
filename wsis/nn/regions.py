"""Features of regions of a feature map."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_area, roi_align, roi_pool

from wsis.errors import InputError
from wsis.nn.masks import segments_of, tight_boxes
from wsis.ops import moi_pool, moi_pool_interpolated, segment_cells
from wsis.ops.moi_pool import Compensation
from wsis.types import Proposals

__all__ = [
    "Pooling",
    "Window",
    "enlarge",
    "mean_and_contrast",
    "pool",
    "pool_segments",
]

Pooling = Literal["roi_pool", "roi_align"]
Window = Literal["box", "region"]


def pool(
    features: Tensor,
    boxes: list[Tensor],
    stride: int,
    size: int = 7,
    how: Pooling = "roi_pool",
    samples: int = 2,
) -> Tensor:
    """Pool boxes of a batch of feature maps to a grid.

    Args:
        features: (N,D,H,W).
        boxes: N tensors (P_i,4) in input pixels.
        stride: input pixels per feature cell.
        size: side of the grid in bins.
        how: "roi_pool" takes the maximum of each bin, "roi_align" interpolates with half-pixel
            offsets (detectron2's ROIAlignV2).
        samples: of "roi_align", per side of a bin; 0 takes one for each cell that the side covers,
            rounded up, which is detectron2's default.

    Returns:
        (P_1 + ... + P_N, D, size, size).
    """
    # in bfloat16 corners would be pixels off
    exact = features.to(torch.promote_types(features.dtype, torch.float32))
    boxes = [box.to(exact.dtype) for box in boxes]
    if how == "roi_pool":
        pooled = roi_pool(exact, boxes, size, 1 / stride)
    else:
        pooled = roi_align(exact, boxes, size, 1 / stride, sampling_ratio=samples, aligned=True)
    return pooled.to(features.dtype)


def enlarge(maps: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Enlarge maps (N,C,h,w) by the stride and crop them to `size` (H, W).

    Scaling by the stride rather than to `size` keeps the maps of padded images aligned.
    """
    pixels = F.interpolate(maps, scale_factor=float(stride), mode="bilinear")
    return pixels[..., : size[0], : size[1]]


def pool_segments(
    features: Tensor,
    proposals: list[Proposals],
    stride: int,
    how: Literal["moi_pool", "moi_pool_interpolated"] = "moi_pool",
    compensation: Compensation = "bins",
    size: int = 7,
    window: Window = "box",
) -> Tensor:
    """Pool segments of a batch to a grid, from cells of the segment only (JTSM, section 3.3).

    A rounded box and the cells that a segment touches may differ by a row or a column at each end.
    Bins of the window "box" are then empty even for a rectangle, whose factor psi is 1 to 2. In the
    window "region", a rectangular segment pools as RoIPool does on its cells.

    Args:
        features: (N,D,H,W).
        proposals: of N images, with superpixels.
        stride: input pixels per feature cell.
        how: "moi_pool" takes the maximum of each bin, "moi_pool_interpolated" warps segments to
            rectangles.
        compensation: factor for empty bins, as in `wsis.ops.moi_pool`.
        size: side of the grid in bins.
        window: where "moi_pool" has its bins: in the segment's box, rounded to cells as by RoIPool,
            or in the smallest rectangle around the segment's own cells.

    Returns:
        (P_1 + ... + P_N, D, size, size).

    Raises:
        InputError: proposals are boxes alone, or their label map is larger than the image.
    """
    height, width = features.shape[-2:]
    boxes, cells = [], []
    for image, p in enumerate(proposals):
        labels, members = segments_of(p)
        below, right = height * stride - labels.shape[0], width * stride - labels.shape[1]
        if min(below, right) < 0:
            raise InputError(
                f"the label map of these proposals is {tuple(labels.shape)}, larger than a map of "
                f"{height} x {width} cells of {stride} pixels: they belong to another image"
            )
        padded = F.pad(labels, (0, right, 0, below), value=-1)
        cells.append(segment_cells(padded, members, (height, width)))
        boxes.append(F.pad(p.boxes, (1, 0), value=image))
    regions, region_cells = torch.cat(boxes), torch.cat(cells)
    if how == "moi_pool_interpolated":
        return moi_pool_interpolated(features, regions, region_cells, size, 1 / stride)
    if window == "region":
        tight = tight_boxes(region_cells)
        last = (tight[:, 2:] - 1) * stride
        regions = torch.cat([regions[:, :1], tight[:, :2] * stride, last], 1)
    return moi_pool(features, regions, region_cells, size, 1 / stride, compensation)


def mean_and_contrast(features: Tensor, boxes: list[Tensor], stride: int, reach: float) -> Tensor:
    """Describe regions by their mean and its contrast to a ring around them.

    The contrast is that of ContextLocNet (Kantorov et al., ECCV 2016). The mean alone cannot tell
    an object from its most discriminative part. Both differ from their surroundings, the whole
    object more.

    Args:
        features: (N,D,H,W).
        boxes: N tensors (P_i,4) in input pixels.
        stride: input pixels per feature cell.
        reach: outer side of the ring over the side of the region, above 1; the ring is clipped to
            the feature map.

    Returns:
        (P_1 + ... + P_N, 2D): the mean, then the mean inside minus the mean of the ring; zero if no
        ring is left.
    """
    limit = boxes[0].new_tensor([features.shape[-1], features.shape[-2]]).repeat(2) * stride
    grow = boxes[0].new_tensor([[-1, -1, 1, 1]]) * (reach - 1) / 2
    windows = []
    for box in boxes:
        grown = box + grow * (box[:, 2:] - box[:, :2]).repeat(1, 2)
        windows.append(grown.clamp(min=0).minimum(limit))
    inside = pool(features, boxes, stride, how="roi_align").mean((2, 3))
    whole = pool(features, windows, stride, how="roi_align").mean((2, 3))
    area, outer = box_area(torch.cat(boxes)), box_area(torch.cat(windows))
    ring = outer / (outer - area).maximum(0.01 * outer).clamp(min=1e-6)
    return torch.cat([inside, (inside - whole) * ring[:, None].to(inside.dtype)], 1)
