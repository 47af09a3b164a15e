"""Selection of backgrounds among the pictures of one caption."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["select"]


def select(
    class_similarities: Sequence[float], caption_similarities: Sequence[float] | None, keep: int
) -> list[int]:
    """Select, of the 2 x `keep` pictures least like any class, the `keep` most like the caption.

    As in EM-Paste's code; its paper keeps 5 of 10, where the first step drops none.

    Args:
        class_similarities: of each picture, the highest similarity to the prompt of a class.
        caption_similarities: of each picture to the caption; None without a caption, which selects
            those least like any class.
        keep: number of pictures to select.

    Returns:
        Positions of the selected, best first; of equals the earlier is first.
    """
    least_alike = sorted(range(len(class_similarities)), key=class_similarities.__getitem__)
    if caption_similarities is None:
        return least_alike[:keep]
    candidates = sorted(least_alike[: 2 * keep])
    return sorted(candidates, key=lambda i: -caption_similarities[i])[:keep]
