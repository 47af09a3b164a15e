import cv2
import numpy as np

from wsis.proposals.objectness import objectness


def by_pixels(image, labels, inside):
    """The score of one segment (H,W) bool, looking at one pixel at a time."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    height, width = labels.shape

    def colour(y, x):
        light, a, b = (int(v) for v in lab[y, x])
        return light // 32, min(max((a - 64) // 16, 0), 7), min(max((b - 64) // 16, 0), 7)

    def histogram(pixels):
        counts = {}
        for y, x in pixels:
            counts[colour(y, x)] = counts.get(colour(y, x), 0) + 1 / len(pixels)
        return counts

    def alike(a, b):
        return sum(min(v, b.get(key, 0)) for key, v in a.items())

    every = [(y, x) for y in range(height) for x in range(width)]
    look = {s: histogram([p for p in every if labels[p] == s]) for s in np.unique(labels)}
    frame = [(0, x) for x in range(width)] + [(height - 1, x) for x in range(width)]
    frame += [(y, 0) for y in range(height)] + [(y, width - 1) for y in range(height)]
    frame_look = {}
    for p in frame:
        for key, v in look[labels[p]].items():
            frame_look[key] = frame_look.get(key, 0) + v / len(frame)
    around, framed, length = {}, 0.0, 0
    for y, x in every:
        for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            v, u = y + dy, x + dx
            if inside[y, x] and 0 <= v < height and 0 <= u < width and not inside[v, u]:
                length += 1
                framed += alike(look[labels[v, u]], frame_look)
                for key, share in look[labels[v, u]].items():
                    around[key] = around.get(key, 0) + share
    around = {key: v / max(length, 1) for key, v in around.items()}
    contrast = 1 - alike(histogram([p for p in every if inside[p]]), around)
    return contrast * framed / max(length, 1) * min(1, np.sqrt(inside.mean() / 0.15))


def test_against_a_look_at_every_pixel():
    rng = np.random.default_rng(0)
    labels = np.kron(np.arange(12).reshape(3, 4), np.ones((4, 4), int))
    image = (rng.integers(0, 4, (12, 16, 3)) * 60 + labels[..., None] * 5).astype(np.uint8)
    members = rng.random((6, 12)) < 0.4
    members[0] = np.arange(12) == 5
    found = objectness(image, labels, members)
    for score, member in zip(found, members, strict=True):
        np.testing.assert_allclose(score, by_pixels(image, labels, member[labels]), atol=1e-5)


def test_no_bit_depends_on_the_order_in_which_superpixels_are_added():
    """As it does not on the number of threads that add them."""
    rng = np.random.default_rng(0)
    labels = np.kron(rng.permutation(300).reshape(15, 20), np.ones((4, 4), int))
    image, members = rng.integers(0, 256, (60, 80, 3), np.uint8), rng.random((400, 300)) < 0.3
    found, order = objectness(image, labels, members), rng.permutation(300)
    assert np.array_equal(objectness(image, order[labels], members[:, np.argsort(order)]), found)


def test_the_whole_object_beats_its_part_and_the_background():
    labels = np.zeros((60, 60), int)
    labels[15:45, 15:45] = 1
    labels[25:35, 25:35] = 2
    labels[:, 50:] = 3
    image = np.full((60, 60, 3), (90, 140, 60), np.uint8)
    image[labels == 1], image[labels == 2] = (150, 150, 160), (214, 60, 50)
    segments = np.array([[0, 1, 1, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], bool)
    whole, part, body, ground = objectness(image, labels, segments)
    assert (whole, part, ground) == (1, 0, 0)
    assert body == 120 / 160  # 120 sides touch the ground, 40 the mark


def test_no_segments_and_segments_without_a_border():
    labels, image = np.zeros((5, 5), int), np.zeros((5, 5, 3), np.uint8)
    assert objectness(image, labels, np.zeros((0, 1), bool)).shape == (0,)
    assert objectness(image, labels, np.ones((1, 1), bool)).tolist() == [0]
