import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsis.nn.mil import (
    MILHead,
    MLPHead,
    Pseudo,
    RefinementHead,
    decode,
    detect,
    encode,
    match,
    mine,
)


def boxes_of(count, seed=0, side=100.0):
    g = torch.Generator().manual_seed(seed)
    corner, extent = (
        torch.rand(count, 2, generator=g) * side,
        5 + torch.rand(count, 2, generator=g) * side / 2,
    )
    return torch.cat([corner, corner + extent], 1)


def iou(a, b):
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = lambda x: (x[2] - x[0]) * (x[3] - x[1])  # noqa: E731
    return w * h / (area(a) + area(b) - w * h)


def test_heads_have_the_papers_shapes_and_scores_stay_within_their_image():
    torch.manual_seed(0)
    trunk = MLPHead(12, 16, 8).eval()
    features = trunk(torch.randn(7, 3, 2, 2))
    first, second = MILHead(8, 5)(features, [4, 3])
    assert first.shape == (4, 5)
    assert second.shape == (3, 5)
    alone = MILHead(8, 5)
    torch.manual_seed(1)
    assert torch.allclose(alone(features, [4, 3])[0], alone(features[:4], [4])[0])
    logits, deltas = RefinementHead(8, 5)(features)
    assert logits.shape == (7, 6)
    assert deltas.shape == (7, 5, 4)
    assert RefinementHead(8, 5, boxes=False)(features)[1] is None


def test_heads_started_from_a_classifier_read_the_mean_and_the_contrast():
    torch.manual_seed(0)
    weight, bias, mean, contrast = (
        torch.randn(5, 4),
        torch.randn(5),
        torch.randn(7, 4),
        torch.randn(7, 4),
    )
    features = torch.cat([mean, contrast], 1)
    mil, refinement = MILHead(8, 5), RefinementHead(8, 5, boxes=False)
    mil.start(weight, bias)
    refinement.start(weight)
    of_class, of_place = mean @ weight.T + bias, contrast @ weight.T
    expected = of_class.softmax(1) * of_place.softmax(0)
    assert torch.allclose(mil(features, [7])[0], expected, atol=1e-6)
    assert torch.allclose(
        refinement(features)[0], torch.cat([of_place, torch.zeros(7, 1)], 1), atol=1e-5
    )


def test_mine_takes_the_best_proposal_of_each_tagged_class():
    scores = torch.tensor([[0.1, 0.9, 0.3], [0.5, 0.2, 0.8]])
    boxes = boxes_of(2)
    pseudo = mine(scores, torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.6, 1.0, 1.5]), boxes)
    assert pseudo.labels.tolist() == [0, 2]
    assert pseudo.proposals.tolist() == [1, 1]
    assert torch.equal(pseudo.boxes, boxes[[1, 1]])
    assert torch.allclose(pseudo.weights, torch.tensor([0.6, 1 - 1e-6]))
    regressed = torch.rand(2, 3, 4)
    assert torch.equal(
        mine(scores, torch.tensor([1.0, 0, 1]), torch.ones(3), regressed).boxes,
        regressed[[1, 1], [0, 2]],
    )


def test_mine_without_tags_or_proposals_is_empty():
    assert not len(mine(torch.rand(4, 3), torch.zeros(3), torch.ones(3), boxes_of(4)).labels)
    assert not len(mine(torch.rand(0, 3), torch.ones(3), torch.ones(3), boxes_of(0)).labels)


def test_match_against_loops():
    proposals, gold = boxes_of(50), boxes_of(3, seed=1)
    pseudo = Pseudo(
        gold,
        torch.tensor([4, 0, 2]),
        torch.ones(3),
        torch.tensor([0.2, 0.5, 0.9]),
        torch.zeros(3).long(),
    )
    found = match(proposals, pseudo, classes=6)
    for p, box in enumerate(proposals.tolist()):
        overlaps = [iou(box, g) for g in gold.tolist()]
        best = int(np.argmax(overlaps))
        assert found.labels[p] == (pseudo.labels[best] if overlaps[best] >= 0.5 else 6)
        assert found.weights[p] == pseudo.weights[best]
        assert abs(found.overlap[p] - overlaps[best]) < 1e-5
    assert (found.foreground == (found.labels < 6)).all()


def test_match_without_pseudo_labels_weighs_nothing():
    nothing = mine(torch.rand(4, 3), torch.zeros(3), torch.ones(3), boxes_of(4))
    found = match(boxes_of(4), nothing, 3)
    assert found.labels.tolist() == [3] * 4
    assert not found.weights.any()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000))
def test_decode_undoes_encode(seed):
    proposals, gold = boxes_of(8, seed), boxes_of(8, seed + 1)
    back = decode(encode(gold, proposals)[:, None], proposals, (1000, 1000))[:, 0]
    assert torch.allclose(back, gold, atol=1e-2)


def test_decode_clips_to_the_image_and_survives_wild_deltas():
    out = decode(torch.full((2, 1, 4), 1e4), boxes_of(2), (30, 40))
    assert out.isfinite().all()
    assert (out[..., 2] <= 40).all()
    assert (out[..., 3] <= 30).all()


def test_detect_against_greedy_loops():
    torch.manual_seed(0)
    boxes, scores = boxes_of(30), torch.rand(30, 3)
    at, kept, labels, index = detect(scores, boxes, nms=0.4, threshold=0.2, limit=1000)
    expected = []
    for c in range(3):
        order = [p for p in scores[:, c].argsort(descending=True).tolist() if scores[p, c] > 0.2]
        chosen = []
        for p in order:
            if all(iou(boxes[p].tolist(), boxes[q].tolist()) <= 0.4 for q in chosen):
                chosen.append(p)
        expected += [(scores[p, c].item(), p, c) for p in chosen]
    expected.sort(reverse=True)
    assert [
        (s.item(), int(p), int(c)) for s, p, c in zip(kept, index, labels, strict=True)
    ] == expected
    assert torch.equal(at, boxes[index])
    assert len(detect(scores, boxes, limit=4)[0]) == 4
    assert len(detect(scores[:0], boxes[:0])[0]) == 0
