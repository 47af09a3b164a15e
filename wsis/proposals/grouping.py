"""Hierarchical grouping of superpixels, with many groupings computed in parallel.

Selective search (Uijlings et al., IJCV 2013, section 3) merges the two most similar neighbours
until one region is left, once per colour space and similarity measure. All M groupings of an image
start from the same S superpixels and take exactly S - 1 merges, so merge t of all groupings is one
vectorised step over (M, ...) arrays.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Graph", "Merges", "group", "neighbours"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

_TIDY_EVERY = 32  # merges between removals of dead edges
_FIRST = 100.0  # bonus of pairs within one starting segment: more than all weights together


class Graph(NamedTuple):
    """The superpixels of one image and their neighbours."""

    edges: Ints
    """(E,2) neighbouring superpixels, each pair once."""
    sizes: Floats
    """(S,) pixels."""
    boxes: Floats
    """(S,4) xyxy pixels, x2/y2 exclusive."""
    area: float
    """Pixels of the image."""


class Merges(NamedTuple):
    """The regions that M groupings of S superpixels made in T merges."""

    members: NDArray[np.uint8]
    """(T,M,ceil(S/8)) the superpixels of each new region, as packed bits."""
    names: NDArray[np.uint64]
    """(T,M) hashes, equal for equal sets of superpixels in any grouping."""
    boxes: Floats
    """(T,M,4) box of the new region, xyxy pixels."""
    sizes: Floats
    """(T,M) pixels of the new region."""
    death: Ints
    """(T,M) the merge that absorbed the region; T if none did."""
    assignment: Ints
    """(M,S) the final region of each superpixel."""


def neighbours(labels: NDArray[np.int32]) -> Ints:
    """Return the pairs (E,2) of labels that share a pixel side in the map (H,W), sorted."""
    count = int(labels.max()) + 1
    keys = []
    for a, b in ((labels[:, 1:], labels[:, :-1]), (labels[1:], labels[:-1])):
        apart = a != b
        first, second = a[apart].astype(np.int64), b[apart].astype(np.int64)
        keys.append(np.minimum(first, second) * count + np.maximum(first, second))
    return np.stack(np.divmod(np.unique(np.concatenate(keys)), count), 1)


class _Groupings:
    """The growing regions of M groupings; a region is named by one of its superpixels."""

    def __init__(
        self,
        graph: Graph,
        signatures: Floats,
        size_weight: Floats,
        fill_weight: Floats,
        starts: Ints,
    ) -> None:
        groupings, superpixels, _ = signatures.shape
        self.area, self.size_weight, self.fill_weight = graph.area, size_weight, fill_weight
        self.signatures, self.starts = signatures.copy(), starts
        self.sizes = np.tile(graph.sizes, (groupings, 1))
        self.boxes = np.tile(graph.boxes, (groupings, 1, 1))
        names = np.random.default_rng(0).integers(0, 2**64, superpixels, np.uint64)
        self.names = np.tile(names, (groupings, 1))
        self.assignment = np.tile(np.arange(superpixels), (groupings, 1))
        self.first, self.second = (np.tile(graph.edges[:, side], (groupings, 1)) for side in (0, 1))
        self.last_edge = np.zeros((groupings, superpixels), np.int64)
        self.rows = np.arange(groupings)
        every = np.repeat(self.rows, len(graph.edges))
        self.similarity = self._similar(every, self.first.ravel(), self.second.ravel()).reshape(
            self.first.shape
        )

    def _similar(self, row: Ints, first: Ints, second: Ints) -> Floats:
        """Return the similarity (N,) of pairs of regions by colour, size and fill.

        As in selective search, without texture.
        """
        look = np.minimum(self.signatures[row, first], self.signatures[row, second]).sum(-1)
        together = (self.sizes[row, first] + self.sizes[row, second]) / self.area
        a, b = self.boxes[row, first], self.boxes[row, second]
        extent = (np.maximum(a[:, 2:], b[:, 2:]) - np.minimum(a[:, :2], b[:, :2])).prod(
            -1
        ) / self.area
        look += _FIRST * (self.starts[row, first] == self.starts[row, second])
        similarity: Floats = (
            look - self.size_weight[row] * together - self.fill_weight[row] * (extent - together)
        )
        return similarity

    def merge(self) -> tuple[Ints, Ints]:
        """Merge the two most similar neighbours of every grouping.

        Returns:
            (M,) the region that is kept and (M,) the region that it absorbs.
        """
        rows, best = self.rows, self.similarity.argmax(1)
        kept, gone = self.first[rows, best], self.second[rows, best]
        n1, n2 = self.sizes[rows, kept], self.sizes[rows, gone]
        share = (n2 / (n1 + n2))[:, None]
        self.signatures[rows, kept] += share * (
            self.signatures[rows, gone] - self.signatures[rows, kept]
        )
        self.sizes[rows, kept] = n1 + n2
        a, b = self.boxes[rows, kept], self.boxes[rows, gone]
        self.boxes[rows, kept] = np.concatenate(
            [np.minimum(a[:, :2], b[:, :2]), np.maximum(a[:, 2:], b[:, 2:])], 1
        )
        self.names[rows, kept] += self.names[rows, gone]
        np.copyto(self.assignment, kept[:, None], where=self.assignment == gone[:, None])
        self._rewire(kept[:, None], gone[:, None])
        return kept, gone

    def _rewire(self, kept: Ints, gone: Ints) -> None:
        """Move the edges of `gone` (M,1) to `kept` (M,1).

        Loops and duplicates are marked dead, the other similarities are updated.
        """
        np.copyto(self.first, kept, where=self.first == gone)
        np.copyto(self.second, kept, where=self.second == gone)
        row, edge = np.nonzero((self.first == kept) | (self.second == kept))
        first, second = self.first[row, edge], self.second[row, edge]
        other = first + second - kept[row, 0]
        self.last_edge[row, other] = edge
        alive = (self.last_edge[row, other] == edge) & (first != second)
        row_dead, edge_dead = row[~alive], edge[~alive]
        self.similarity[row_dead, edge_dead] = -np.inf
        self.first[row_dead, edge_dead] = self.second[row_dead, edge_dead] = -1
        row, edge, first, second = row[alive], edge[alive], first[alive], second[alive]
        self.similarity[row, edge] = self._similar(row, first, second)

    def tidy(self) -> None:
        """Drop dead edges; the grouping with the most live edges decides how many columns stay."""
        dead = self.first < 0
        width = int((~dead).sum(1).max())
        order = np.argsort(dead, 1, kind="stable")[:, :width]
        self.first = np.take_along_axis(self.first, order, 1)
        self.second = np.take_along_axis(self.second, order, 1)
        self.similarity = np.take_along_axis(self.similarity, order, 1)


def group(
    graph: Graph,
    signatures: Floats,
    size_weight: Floats,
    fill_weight: Floats,
    starts: Ints,
    until: int = 1,
) -> Merges:
    """Merge neighbours by similarity until `until` regions are left in each of M groupings.

    Args:
        graph: The S superpixels; the graph must be connected, as that of a label map is.
        signatures: (M,S,D) histograms of each superpixel in each grouping, multiplied by the weight
            of colour. The similarity of two histograms is their intersection; those of merged
            regions are averaged by size.
        size_weight: (M,) weight of size, which merges small regions first.
        fill_weight: (M,) weight of fill, which first merges regions that fill their common box.
        starts: (M,S) starting segment of each superpixel; superpixels of one segment merge first.
        until: Number of regions at the end.
    """
    groupings, superpixels, _ = signatures.shape
    total = max(superpixels - until, 0)
    state = _Groupings(graph, signatures, size_weight, fill_weight, starts)
    merges = Merges(
        np.zeros((total, groupings, (superpixels + 7) // 8), np.uint8),
        np.zeros((total, groupings), np.uint64),
        np.zeros((total, groupings, 4), np.float32),
        np.zeros((total, groupings), np.float32),
        np.full((total, groupings), total),
        state.assignment,
    )
    born = np.full((groupings, superpixels), -1)
    rows = np.arange(groupings)
    for step in range(total):
        if step % _TIDY_EVERY == 0:
            state.tidy()
        kept, gone = state.merge()
        merges.members[step] = np.packbits(state.assignment == kept[:, None], axis=1)
        merges.names[step], merges.boxes[step] = state.names[rows, kept], state.boxes[rows, kept]
        merges.sizes[step] = state.sizes[rows, kept]
        for ended in (born[rows, kept], born[rows, gone]):
            known = ended >= 0
            merges.death[ended[known], rows[known]] = step
        born[rows, kept] = step
    return merges
