import pytest
import torch
import torch.nn.functional as F

from wsis.nn import pixels
from wsis.nn.pixels import PixelClassifier

NONE = torch.zeros(0).long()


def test_half_of_what_is_remembered_of_each_class_is_object():
    torch.manual_seed(0)
    classifier = PixelClassifier(3, 4, classes=5)
    targets = torch.zeros(2, 16, 20)
    targets[0, :2, :3], targets[1, 10:] = 1, 1
    classifier.remember(torch.rand(3, 5, 5), torch.tensor([4, 1]), targets, NONE)
    count = int(classifier.seen)
    assert count == pixels._NEW
    for label in (1, 4):
        own = classifier.targets[:count][classifier.labels[:count] == label]
        assert own.mean() == 0.5
        assert len(own) == count / 2


def test_features_are_those_of_the_enlarged_map():
    """Where a target is one pixel, all object pixels have the feature of that pixel."""
    torch.manual_seed(0)
    classifier, features = PixelClassifier(3, 4, classes=2), torch.rand(3, 4, 6)
    targets = torch.zeros(1, 16, 22)
    targets[0, 9, 13] = 1
    classifier.remember(features, torch.tensor([1]), targets, NONE)
    found = classifier.features[: pixels._NEW][classifier.targets[: pixels._NEW] == 1].float()
    expected = F.interpolate(features[None], scale_factor=4, mode="bilinear")[0, :, 9, 13]
    torch.testing.assert_close(found, expected.expand_as(found), atol=1e-3, rtol=0)


def test_the_oldest_pixels_are_forgotten_first(monkeypatch):
    monkeypatch.setattr(pixels, "_MEMORY", 3 * (pixels._NEW + 10))
    classifier = PixelClassifier(3, 4, classes=3)
    for label in (1, 2):
        classifier.remember(torch.rand(3, 4, 4), torch.tensor([label]), torch.ones(1, 16, 16), NONE)
    assert (classifier.labels == 1).sum() == 10
    assert (classifier.labels == 2).sum() == pixels._NEW


@pytest.mark.parametrize("objects", [0, 1])
def test_pixels_of_an_image_are_outside_of_the_classes_it_does_not_hold(objects):
    """Each of them about as often, from anywhere in the image and nowhere in the padding."""
    torch.manual_seed(0)
    classifier, features = PixelClassifier(1, 4, classes=4), torch.ones(1, 6, 6)
    features[:, :4, :3] = 0  # the image; the rest is padding
    labels, targets = torch.arange(objects), torch.ones(objects, 14, 10)
    classifier.remember(features, labels, targets, torch.tensor([1, 3]))
    count = int(classifier.seen)
    assert count == pixels._NEW // 2 + objects * pixels._NEW
    known, owners = classifier.targets[:count], classifier.labels[:count]
    assert not known[owners > 0].any()
    assert not classifier.features[:count].any()
    share = (owners == 1).sum() / (pixels._NEW // 2)
    assert 0.3 < share < 0.7
    assert (owners == 1).sum() + (owners == 3).sum() == pixels._NEW // 2


def test_nothing_remembered_is_no_loss():
    classifier = PixelClassifier(3, 4, classes=2)
    classifier.remember(torch.rand(3, 4, 4), NONE, torch.zeros(0, 16, 16), NONE)
    loss = classifier.loss()
    loss.backward()
    assert loss == 0
    assert all(not p.grad.any() for p in classifier.parameters())


def test_learns_which_pixels_are_which():
    """Two classes that look at different channels, in images that hold both."""
    torch.manual_seed(0)
    classifier = PixelClassifier(2, 8, classes=2)
    optimiser = torch.optim.AdamW(classifier.parameters(), 0.02)
    for _ in range(100):
        features = torch.rand(2, 6, 6)
        enlarged = F.interpolate(features[None], scale_factor=4, mode="bilinear")[0]
        classifier.remember(features, torch.tensor([0, 1]), (enlarged > 0.5).float(), NONE)
        optimiser.zero_grad()
        classifier.loss().backward()
        optimiser.step()
    features = torch.rand(1, 2, 6, 6)
    enlarged = F.interpolate(features, scale_factor=4, mode="bilinear")
    right = (classifier.eval()(features) > 0) == (enlarged > 0.5)
    assert right.float().mean() > 0.9
