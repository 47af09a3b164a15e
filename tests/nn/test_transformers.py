"""Vision transformers of timm as backbones: any size of image, stages, and the features that timm itself gives."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from wsis.errors import InputError
from wsis.nn.backbone import Backbone, BackboneSettings

SMALL = {"embed_dim": 32, "depth": 4, "num_heads": 2}
FAMILIES = {
    "vit_tiny_patch16_224": (SMALL, 16, 32),
    "vit_small_patch14_reg4_dinov2": (SMALL, 14, 32),
    "vit_small_patch16_dinov3": (SMALL, 16, 32),
    "vit_base_patch16_siglip_224": (SMALL, 16, 32),
    "eva02_tiny_patch14_224": (SMALL, 14, 32),
    "samvit_base_patch16": ({**SMALL, "neck_chans": 24, "global_attn_indexes": [1, 3]}, 16, 24),
    "swin_tiny_patch4_window7_224": ({"embed_dim": 16, "depths": (2, 2, 2, 2)}, 32, 128),
}
PLAIN = [name for name in FAMILIES if not name.startswith("swin")]


def build(name: str, weights: str = "none", **settings) -> Backbone:
    torch.manual_seed(0)
    given = {"output_stride": 32, "frozen_stages": 0, "model_args": FAMILIES[name][0], **settings}
    return Backbone(BackboneSettings(name, weights, **given))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [(40, 70), (97, 61)])
def test_any_size(name, size):
    backbone = build(name).eval()
    stride, channels = FAMILIES[name][1:]
    assert (backbone.stride, backbone.channels) == (stride, channels)
    with torch.no_grad():
        features = backbone([torch.randint(0, 256, (3, *size), dtype=torch.uint8)])
    cells = (-(-side // stride) for side in size)
    assert features.shape == (1, channels, *cells)
    assert features.std() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN[:5])
def test_the_last_map_is_made_of_timms_last_tokens(name):
    backbone = build(name).eval()
    other = timm.create_model(name, dynamic_img_size=True, num_classes=0, **SMALL).eval()
    weights = backbone.network.model.state_dict()
    missing = other.load_state_dict(weights, strict=False).missing_keys
    assert all(key.startswith(("attn_pool.", "fc_norm.")) for key in missing), "not of the head"
    images = torch.randint(0, 256, (2, 3, 4 * backbone.stride, 6 * backbone.stride))
    with torch.no_grad():
        tokens = other.forward_features(backbone.normalise(images))
        expected = tokens[:, other.num_prefix_tokens :].mT.unflatten(2, (4, 6))
        torch.testing.assert_close(backbone(images), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN)
def test_levels_are_blocks_and_later_ones_do_not_exist(name):
    backbone = build(name, feature_level=1)
    assert len(backbone.strides) == 2
    assert len(backbone.network.model.blocks) == 2
    with pytest.raises(InputError, match="no feature_level 4"):
        build(name, feature_level=4)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("frozen", [0, 2, 5])
def test_frozen_stages_do_not_move(name, frozen):
    backbone = build(name, frozen_stages=frozen).train()
    before = {key: value.clone() for key, value in backbone.named_parameters()}
    features = backbone(torch.randint(0, 256, (2, 3, 112, 112)))
    assert features.requires_grad == (frozen < 5)
    if features.requires_grad:
        learnt = [p for p in backbone.parameters() if p.requires_grad]
        optimiser = torch.optim.SGD(learnt, lr=0.1)
        (features * torch.randn_like(features)).sum().backward()
        optimiser.step()
    moved = {
        key for key, value in backbone.named_parameters() if not torch.equal(value, before[key])
    }
    blocks = "model.layers" if name.startswith("swin") else "model.blocks"
    stages = ["model.patch_embed.", *(f"{blocks}.{i}." for i in range(4))]
    last = 3 if frozen == 2 and name.startswith("swin") else frozen  # its first has the patches
    for i, stage in enumerate(stages):
        assert any(key.startswith(f"network.{stage}") for key in moved) == (i >= last), stage
    if frozen:
        assert not any(key.endswith(("pos_embed", "cls_token", "reg_token")) for key in moved)


def test_weights_from_a_file(tmp_path):
    torch.manual_seed(3)
    network = timm.create_model("vit_tiny_patch16_224", **SMALL)
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    backbone = build("vit_tiny_patch16_224", str(tmp_path / "vit.safetensors"))
    torch.testing.assert_close(backbone.network.model.pos_embed, network.pos_embed)
    torch.testing.assert_close(
        backbone.network.model.blocks[3].mlp.fc1.weight, network.blocks[3].mlp.fc1.weight
    )


def test_what_takes_one_size_alone_is_refused():
    settings = BackboneSettings("hiera_tiny_224", "none", output_stride=32)
    with pytest.raises(InputError, match="takes images of 224 x 224 px alone") as error:
        Backbone(settings)
    assert "\n" not in str(error.value)


def test_a_stride_that_cannot_be_had_is_refused():
    with pytest.raises(InputError, match=r"output_stride 8 .*output_stride 32 leaves its stride"):
        build("vit_tiny_patch16_224", output_stride=8)
