from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from wsis.errors import InputError
from wsis.nn.backbone import Backbone, BackboneSettings, _build, weights_follow

SHARED = Path(os.environ.get("WSIS_SHARED", Path(__file__).parents[3] / "shared"))
MOBILENET = SHARED / "data/weights/mobilenetv2_100.safetensors"


def build(name: str, weights: str = "none", **settings) -> Backbone:
    return Backbone(BackboneSettings(name, weights, **settings))


def images(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes
    ]


@pytest.mark.parametrize(
    ("name", "stride", "channels"),
    [
        ("resnet18", 8, 512),
        ("resnet26", 16, 2048),
        ("mobilenetv2_100", 8, 320),
        ("convnext_atto", 16, 320),
        ("resnet18_ws", 8, 512),
        ("resnet18_ws", 16, 512),
        ("resnet18_ws_v2", 8, 512),
        ("resnet18_ws_v2", 16, 512),
        ("resnet50_ws", 8, 2048),
    ],
)
def test_shape_is_what_the_attributes_say(name, stride, channels):
    backbone = build(name, output_stride=stride).eval()
    assert (backbone.stride, backbone.channels) == (stride, channels)
    with torch.no_grad():
        features = backbone(images((40, 70), (64, 33)))
    assert features.shape == (2, channels, -(-64 // stride), -(-70 // stride))


def test_feature_level_and_stride_left_as_built():
    backbone = build("resnet18", output_stride=32, feature_level=2)
    assert (backbone.stride, backbone.channels) == (8, 128)
    assert backbone.eval()(images((64, 96))).shape == (1, 128, 8, 12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet18_ws", "resnet18_ws_v2"])
def test_dilation_samples_the_strided_network_finer(name):
    """Every second feature of the dilated network is one of the strided network, away from the zeros beyond the border."""
    torch.manual_seed(0)
    # float32 rounds hundreds of additions apart
    fine = build(name, output_stride=8).eval().double()
    coarse = build(name, output_stride=16).eval().double()
    coarse.network.load_state_dict(fine.network.state_dict())
    batch = images((160, 160))
    finer, strided = fine(batch)[:, :, ::2, ::2], coarse(batch)
    torch.testing.assert_close(finer[..., 4:-4, 4:-4], strided[..., 4:-4, 4:-4])


def test_normalised_by_hand_then_padded_with_zeros():
    backbone = build("resnet18", mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    small, large = images((20, 30), (33, 8))
    out = backbone.normalise([small, large])
    assert out.shape == (2, 3, 40, 32)
    expected = (small[1].double() / 255 - 0.2) / 0.25
    torch.testing.assert_close(out[0, 1, :20, :30].double(), expected, rtol=1e-5, atol=1e-5)
    assert not out[0, :, 20:].any()
    assert not out[0, :, :, 30:].any()
    torch.testing.assert_close(backbone.normalise(small[None].float()), backbone.normalise([small]))


def test_resnet_ws_takes_the_authors_means():
    out = build("resnet18_ws").normalise(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    torch.testing.assert_close(
        out[0, :, 0, 0], -torch.tensor([122.7717, 115.9465, 102.9801]), rtol=1e-5, atol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "resnet18_ws"])
@pytest.mark.parametrize("frozen", [0, 1, 3, 5])
def test_frozen_stages_do_not_move(name, frozen):
    torch.manual_seed(0)
    backbone = build(name, frozen_stages=frozen).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    features = backbone(images((32, 32), (32, 32)))
    if features.requires_grad:
        optimiser = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
        features.square().mean().backward()
        optimiser.step()
    moved = {
        key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])
    }
    stages = {
        "resnet18": [
            "network.conv1.",
            "network.layer1.",
            "network.layer2.",
            "network.layer3.",
            "network.layer4.",
        ],
        "mobilenetv2_100": [
            "network.conv_stem.",
            "network.blocks.1.",
            "network.blocks.2.",
            "network.blocks.4.",
            "network.blocks.6.",
        ],
        "resnet18_ws": [
            "network.stem.",
            "network.res2.",
            "network.res3.",
            "network.res4.",
            "network.res5.",
        ],
    }[name]
    for i, stage in enumerate(stages):
        assert any(key.startswith(stage) for key in moved) == (i >= frozen), stage
    assert features.requires_grad == (frozen < 5)


def test_read_weights_freeze_batchnorm_everywhere(tmp_path):
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.pth")
    backbone = build("resnet18", str(tmp_path / "resnet18.pth"), frozen_stages=2).train()
    norms = [m for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(m.training or m.weight.requires_grad for m in norms)
    assert backbone.network.layer4[0].conv1.weight.requires_grad
    assert not backbone.network.layer1[0].conv1.weight.requires_grad


@pytest.mark.parametrize("frozen", [0, 2])
def test_loaded_weights_freeze_batchnorm_everywhere(tmp_path, frozen):
    """As read ones do: features of one image in training are those of evaluation."""
    torch.manual_seed(0)
    teacher = build("resnet18")
    state = {f"backbone.{key}": value for key, value in teacher.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    backbone, batch = build("resnet18", frozen_stages=frozen), images((64, 64))
    backbone.load(tmp_path / "last.ckpt")
    norms = [m for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    with torch.no_grad():
        torch.testing.assert_close(backbone.train()(batch), teacher.eval()(batch))
    assert all(torch.equal(norm.running_mean, m) for norm, m in zip(norms, before, strict=True))
    assert not any(norm.weight.requires_grad for norm in norms)
    assert backbone.network.layer4[0].conv1.weight.requires_grad


def full(name: str) -> torch.nn.Module:
    torch.manual_seed(1)
    network = timm.create_model(name).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean)
    return network


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100"])
def test_full_classifier_file_gives_its_features(tmp_path, name, suffix):
    network = full(name)
    path = tmp_path / f"weights{suffix}"
    save_file(network.state_dict(), path) if suffix == ".safetensors" else torch.save(
        network.state_dict(), path
    )
    backbone = build(name, str(path), output_stride=32).eval()
    batch = images((64, 64))
    expected = network.forward_intermediates(backbone.normalise(batch), intermediates_only=True)[-1]
    torch.testing.assert_close(backbone(batch), expected)


def test_own_checkpoint(tmp_path):
    torch.manual_seed(0)
    teacher = build("resnet18", mean=(0.5, 0.5, 0.5), frozen_stages=0)
    state = {f"backbone.{key}": value for key, value in teacher.state_dict().items()}
    torch.save(
        {"state_dict": {**state, "head.weight": torch.zeros(2, 512)}}, tmp_path / "last.ckpt"
    )
    student = build("resnet18", str(tmp_path / "last.ckpt"))
    batch = images((32, 32))
    torch.testing.assert_close(student.eval()(batch), teacher.eval()(batch))
    with pytest.raises(InputError, match="not those of backbone resnet50"):
        build("resnet50", str(tmp_path / "last.ckpt"))


def caffe2_name(key: str) -> str:
    """stem.conv1.norm.weight -> conv1_1_bn_s, res2.0.shortcut.weight -> res2_0_branch1_w."""
    kinds = {
        "norm.weight": "bn_s",
        "norm.bias": "bn_b",
        "norm.running_mean": "bn_rm",
        "norm.running_var": "bn_riv",
        "weight": "w",
    }
    layer, kind = next((key[: -len(k) - 1], v) for k, v in kinds.items() if key.endswith(k))
    for ours, theirs in [
        ("shortcut", "branch1"),
        ("conv1", "branch2a"),
        ("conv2", "branch2b"),
        ("conv3", "branch2c"),
    ]:
        layer = layer.replace(ours, theirs) if layer.startswith("res") else layer
    return f"{layer.replace('stem.conv', 'conv1_').replace('.', '_')}_{kind}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "style"), [("resnet18_ws_v2", "caffe2"), ("resnet50_ws", "detectron2")]
)
def test_authors_pickle(tmp_path, name, style):
    torch.manual_seed(0)
    source = build(name).eval()
    arrays = {
        k: v.numpy()
        for k, v in source.network.state_dict().items()
        if not k.endswith("num_batches_tracked")
    }
    arrays["stem.conv1.weight"] = np.ascontiguousarray(
        arrays["stem.conv1.weight"][:, ::-1]
    )  # theirs looks at BGR
    if style == "caffe2":
        arrays = {caffe2_name(k): v for k, v in arrays.items()}
        content = {
            "blobs": {**arrays, "conv1_1_w_momentum": np.zeros(3), "pred_w": np.zeros((1000, 512))}
        }
    else:
        content = {
            "model": {**arrays, "linear.weight": np.zeros((1000, 512))},
            "__author__": "test",
        }
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(content, protocol=2 if style == "caffe2" else 4))
    batch = images((48, 48))
    torch.testing.assert_close(build(name, str(path)).eval()(batch), source(batch))


def one_line(error: pytest.ExceptionInfo[InputError]) -> bool:
    return "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pkl", ".ckpt"])
def test_truncated_file(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    state = {"conv1.weight": torch.zeros(64, 3, 7, 7)}
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps({"model": {"stem.conv1.weight": np.zeros((64, 3, 3, 3))}}))
    else:
        save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(InputError, match=f"weights{suffix}") as error:
        build("resnet18", str(path))
    assert one_line(error)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet34", "mobilenetv2_100", "resnet18_ws"])
def test_weights_of_another_network(tmp_path, name):
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.safetensors")
    with pytest.raises(InputError, match=r"resnet18\.safetensors") as error:
        build(name, str(tmp_path / "resnet18.safetensors"))
    assert one_line(error)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet18w"}, "did you mean"),
        ({"name": "vgg16"}, "output_stride 32 leaves"),
        ({"name": "resnet18", "feature_level": 7}, "no feature_level 7"),
        ({"name": "resnet18", "frozen_stages": 6}, "0 to 5 stages"),
        ({"name": "resnet18", "output_stride": 7}, "8, 16 or 32"),
        ({"name": "resnet18", "weights": "nowhere.pth"}, r"no weights at nowhere\.pth"),
        ({"name": "resnet18_ws", "weights": "imagenet"}, "authors' file"),
        (
            {"name": "hrnet_w18_small", "output_stride": 32, "frozen_stages": 2},
            "frozen_stages to 0 or 5",
        ),
    ],
)
def test_mistakes_are_one_line(settings, message):
    with pytest.raises(InputError, match=message) as error:
        build(**settings)
    assert one_line(error)


@pytest.mark.parametrize(
    "settings",
    [{"output_stride": 7}, {"output_stride": 0}, {"frozen_stages": -1}, {"frozen_stages": 6}],
)
def test_settings_that_no_network_has_are_refused_before_one_is_made(settings):
    with pytest.raises(InputError, match="a stride of 8, 16 or 32, and 0 to 5 stages"):
        BackboneSettings(**settings)
    for edge in ({"output_stride": 32, "frozen_stages": 0}, {"frozen_stages": 5}):
        BackboneSettings(**edge)


def test_hub_out_of_reach(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(timm.models._builder, "load_pretrained", unreachable)
    told = (
        r"backbone resnet18: no route to host; fetch model.safetensors from https://.*timm/resnet18.* "
        r"give --model.backbone.name resnet18 --model.backbone.weights model.safetensors"
    )
    with pytest.raises(InputError, match=told) as error:
        build("resnet18", "imagenet")
    assert one_line(error)


@pytest.mark.slow
def test_weights_of_another_network_are_recognised(tmp_path):
    """A file without its name is the first mistake of those who fetch weights by hand."""
    save_file(timm.create_model("mobilenetv2_100").state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="they look like mobilenetv2_100: give") as error:
        build("resnet50", str(tmp_path / "model.safetensors"))
    assert one_line(error)
    save_file({"odd": torch.zeros(3)}, tmp_path / "odd.safetensors")
    with pytest.raises(InputError, match="give a file made for it, or the name"):
        build("resnet50", str(tmp_path / "odd.safetensors"))


def test_weights_follow_reads_nothing():
    with weights_follow():
        backbone = build("resnet18", "nowhere.pth", frozen_stages=0)
        build("resnet18", "imagenet")
    assert not backbone.network.bn1.weight.requires_grad
    with pytest.raises(InputError, match="nowhere"):
        build("resnet18", "nowhere.pth")


@pytest.mark.skipif(not MOBILENET.is_file(), reason="real weights are not here")
def test_real_weights_see_what_is_in_real_images():
    """Logits of the same weights in timm's own classifier are sure of something; the dilated features keep that."""
    from PIL import Image

    args, half = {"pad_type": "same"}, (0.5, 0.5, 0.5)
    settings = {"output_stride": 16, "model_args": args, "mean": half, "std": half}
    backbone = build("mobilenetv2_100", str(MOBILENET), **settings).eval()
    overlay = {"file": str(MOBILENET)}
    network = timm.create_model(
        "mobilenetv2_100", pretrained=True, pretrained_cfg_overlay=overlay, **args
    ).eval()
    paths = sorted((SHARED / "data/coco/val2017").glob("*.jpg"))[:4]
    batch = [
        torch.tensor(np.array(Image.open(p).convert("RGB").resize((224, 224)))).permute(2, 0, 1)
        for p in paths
    ]
    with torch.no_grad():
        features = backbone(batch)
        as_built = network.forward_intermediates(
            backbone.normalise(batch), intermediates_only=True
        )[-1]
        sure = network(backbone.normalise(batch)).softmax(1).amax(1)
    assert sure.mean() > 0.1  # chance is 0.001
    pooled = torch.nn.functional.normalize(features.mean((2, 3)), dim=1)
    assert (pooled @ pooled.T).fill_diagonal_(0).max() < 0.99
    correlation = torch.corrcoef(
        torch.stack([features.mean((2, 3)).flatten(), as_built.mean((2, 3)).flatten()])
    )[0, 1]
    assert correlation > 0.9


def small() -> nn.Sequential:
    """Maps of stride 2 and 4 would be its first and last layer's."""
    torch.manual_seed(0)
    first, last = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)
    return nn.Sequential(first, nn.BatchNorm2d(4), last)


class Maps(nn.Module):
    """Two maps by name."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = small()

    def forward(self, images):
        fine = self.layers[0](images)
        return {"fine": fine, "coarse": self.layers[1:](fine)}


def test_a_module_gives_the_features_of_its_own_forward():
    module = small().eval()
    backbone = build(module, mean=(0, 0, 0), std=(1, 1, 1)).eval()
    (image,) = images((40, 60))
    assert (backbone.channels, backbone.stride) == (6, 4)
    torch.testing.assert_close(backbone([image]), module(image[None] / 255))


def test_maps_of_a_module_are_its_levels():
    fine, coarse = build(Maps(), feature_level=0), build(Maps())
    assert (fine.channels, fine.stride) == (4, 2)
    assert (coarse.widths, coarse.strides) == ([4, 6], [2, 4])


def test_a_module_is_copied_and_frozen_as_a_whole_or_left_as_it_is():
    module = small()
    module[0].weight.requires_grad_(False)
    left = [p.requires_grad for p in build(module, frozen_stages=1).parameters()]
    assert left == [False, True, True, True, True, True]
    assert not any(p.requires_grad for p in build(module, frozen_stages=5).parameters())
    assert module[2].weight.requires_grad


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (nn.Linear(3, 4), "Linear does not take images"),
        (nn.Sequential(small(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), r"returns \(1, 6\)"),
        (nn.Conv2d(3, 4, 5), r"returns \(1, 4, 252, 252\)"),
        (nn.LSTM(256, 4), "does not take images"),
    ],
)
def test_a_module_without_feature_maps_is_refused(module, told):
    with pytest.raises(InputError, match=told) as refused:
        build(module)
    assert "\n" not in str(refused.value)


def test_weights_in_a_file_are_not_for_a_module():
    save = {"0.weight": torch.zeros(4, 3, 3, 3)}
    with pytest.raises(InputError, match="comes with its weights"):
        _build(BackboneSettings(small(), "weights.pth"), save)


def test_a_checkpoint_says_that_its_backbone_was_a_module():
    with pytest.raises(InputError, match="given from Python; give it again"):
        build("torch.nn.modules.container.Sequential")
