import pytest
import pytorch_lightning as pl
import torch
from torchvision.ops import box_iou

from wsis.data.shapes import Shapes
from wsis.models.pdsl import PDSL, Foreground, foreground, nearest_seeds, rate, regression_loss
from wsis.nn.mil import Pseudo, decode, match

SMALL = {"num_classes": 8, "backbone": "test_byobnet", "weights": "none", "output_stride": 32, "stage": 1, "hidden": 16}
SMALL |= {"features": 16, "mask_width": 8, "test_sides": (), "test_flip": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Shapes:
    made = Shapes(root=tmp_path_factory.mktemp("shapes"), train=8, val=2, salient=2)
    made.prepare_data()
    return made


def boxes_of(count: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=g) * 60
    return torch.cat([corner, corner + 20 + torch.rand(count, 2, generator=g) * 40], 1)


def pseudo_of(boxes: torch.Tensor, labels: list[int]) -> Pseudo:
    count = len(boxes)
    scores = torch.linspace(0.2, 0.9, count)
    return Pseudo(boxes, torch.tensor(labels), scores, torch.full((count,), 0.5), torch.arange(count))


def test_foreground_holds_what_was_matched_and_no_more_than_asked():
    proposals, pseudo = boxes_of(200), pseudo_of(boxes_of(3, 1), [5, 0, 2])
    matched = match(proposals, pseudo, 8)
    found = foreground(proposals, pseudo, matched, 10_000)
    assert sorted(found.proposals.tolist()) == matched.foreground.nonzero().flatten().tolist()
    assert torch.equal(found.boxes, proposals[found.proposals])
    assert torch.equal(found.labels, pseudo.labels[found.pseudo])
    assert torch.equal(found.scores, pseudo.scores[found.pseudo])
    assert torch.allclose(found.overlap, box_iou(found.boxes, pseudo.boxes).gather(1, found.pseudo[:, None])[:, 0])
    few = foreground(proposals, pseudo, matched, 5)
    assert len(few.boxes) == 5 == len(set(few.proposals.tolist()))


def test_seeds_are_each_pseudo_labels_nearest_foreground():
    torch.manual_seed(0)
    which, overlap = torch.tensor([0, 2, 0, 2, 0, 2, 2]), torch.rand(7)
    found = Foreground(boxes_of(7), torch.arange(7), which, overlap, which, overlap)
    expected = set()
    for g in (0, 2):
        members = [k for k in range(7) if which[k] == g]
        expected |= set(sorted(members, key=lambda k: -overlap[k])[:3])
    assert set(nearest_seeds(found, 3).tolist()) == expected
    assert set(nearest_seeds(found, 100).tolist()) == set(range(7))
    assert nearest_seeds(Foreground(*(part[:0] for part in found)), 3).tolist() == []


def test_regression_loss_is_zero_where_the_deltas_arrive():
    proposals, pseudo = boxes_of(50), pseudo_of(boxes_of(2, 1), [1, 3])
    matched = match(proposals, pseudo, 5)
    deltas = torch.zeros(50, 5, 4, requires_grad=True)
    loss = regression_loss(deltas, proposals, pseudo, matched)
    assert loss > 0
    (gradient,) = torch.autograd.grad(loss, deltas)
    moved = gradient.abs().sum(-1).nonzero().tolist()
    assert sorted(moved) == sorted([p, int(matched.labels[p])] for p in matched.foreground.nonzero().flatten().tolist())
    goal = pseudo.boxes[matched.pseudo]
    with torch.no_grad():
        from wsis.nn.mil import encode

        exact = encode(goal, proposals)[:, None].expand(-1, 5, -1)
        assert torch.allclose(decode(exact, proposals, (500, 500))[:, 0], goal, atol=1e-3)
        assert regression_loss(exact, proposals, pseudo, matched) == 0


@pytest.mark.parametrize(("step", "factor"), [(0, 0.1), (4, 0.5), (9, 1.0), (69, 1.0), (70, 0.1), (90, 0.01)])
def test_rate(step, factor):
    assert rate(step, 100, 0.1, (0.7, 0.9)) == pytest.approx(factor)
    if step >= 10:
        assert rate(step, 100, 0.0, (0.7, 0.9)) == pytest.approx(factor)


def batch_of(data: Shapes) -> list:
    samples = data.samples("train", train=True, supervision="tags")
    return [samples.sample(i, draw=3) for i in range(2)]


def step(data: Shapes, **settings) -> tuple[dict, PDSL]:
    pl.seed_everything(0, verbose=False)
    model, logged = PDSL(**{**SMALL, **settings}), {}
    model.log, model.log_dict = (lambda name, value, **_: logged.update({name: value})), (lambda d, **_: logged.update(d))
    model.training_step(batch_of(data), 0).backward()
    return logged, model


def test_the_loss_is_the_sum_of_its_parts(data):
    for weight in (0.0, 0.5, 1.0):
        logged, _ = step(data, correlation=weight)
        parts = logged["train/mil"] + logged["train/refinement"] + logged["train/box"] + logged["train/mask"]
        assert torch.allclose(logged["train/loss"], parts + weight * logged["train/correlation"])


def test_correlation_teaches_the_masks_and_not_the_detection(data):
    (_, without), (_, with_it) = step(data, correlation=0.0), step(data, correlation=1.0)
    for (name, a), b in zip(without.named_parameters(), with_it.parameters(), strict=True):
        if name.startswith("masks"):
            assert not torch.equal(a.grad, b.grad)
        elif a.requires_grad:
            assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("settings", [{"refinements": 0}, {"mask_heads": 0}, {"seeds": 1}, {"correlation_target": "own"}])
def test_ablations_train_and_predict(data, settings):
    logged, model = step(data, **settings)
    assert all(torch.as_tensor(value).isfinite() for value in logged.values())
    assert len(model.refinements) == settings.get("refinements", 4)
    assert len(model.masks.predictors) == 1 + settings.get("mask_heads", 4)
    sample = data.samples("val", train=False, supervision="tags").sample(0)
    with torch.no_grad():
        assert len(model.eval().predict(sample).boxes) > 0


def test_seed_masks_follow_a_flip(data):
    torch.manual_seed(0)
    model = PDSL(**SMALL)
    samples = data.samples("val", train=False, supervision="tags")
    sample = samples.sample(0)
    width = sample["size"][1]
    boxes = sample["truth"].boxes
    labels = sample["truth"].labels
    one = torch.ones(len(boxes))
    found = Foreground(boxes, torch.arange(len(boxes)), labels, one, torch.arange(len(boxes)), one)
    mirrored = boxes.clone()
    mirrored[:, 0], mirrored[:, 2] = width - boxes[:, 2], width - boxes[:, 0]
    flipped = {**sample, "view": sample["view"]._replace(flip=True)}
    plain = model.seed_masks([found], [sample])
    assert torch.equal(model.seed_masks([found._replace(boxes=mirrored)], [flipped]), plain.flip(-1))
    assert 0.2 < plain.mean() < 0.98


def test_predictions_average_over_views_in_the_images_frame(data):
    torch.manual_seed(0)
    model = PDSL(**{**SMALL, "test_sides": (256,), "test_flip": True}).eval()
    sample = data.samples("val", train=False, supervision="tags").sample(0)
    mirrored = {**sample, "image": sample["image"].flip(-1)}
    boxes = sample["proposals"].boxes.clone()
    boxes[:, 0], boxes[:, 2] = sample["size"][1] - boxes[:, 2], sample["size"][1] - boxes[:, 0]
    mirrored["proposals"] = sample["proposals"]._replace(boxes=boxes)
    with torch.no_grad():
        a, b = model.predict(sample), model.predict(mirrored)
    assert torch.allclose(a.scores, b.scores, atol=1e-5)  # the two views change places
