"""Which of the pictures of one caption become backgrounds."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["select"]


def select(
    class_similarities: Sequence[float], caption_similarities: Sequence[float] | None, keep: int
) -> list[int]:
    """Choose `keep` pictures: of the 2 `keep` that are least like any class, those most like the caption.

    As EM-Paste's code does; its paper keeps 5 of 10, where the first step drops none.

    Args:
        class_similarities: of each picture, its greatest similarity to the prompt of a class.
        caption_similarities: of each picture with the caption; without a caption those least like
            any class are chosen.
        keep: how many.

    Returns:
        Positions of the chosen, the best first; the earlier of two that are equal.
    """
    apart = sorted(range(len(class_similarities)), key=class_similarities.__getitem__)
    if caption_similarities is None:
        return apart[:keep]
    return sorted(sorted(apart[: 2 * keep]), key=lambda i: -caption_similarities[i])[:keep]
