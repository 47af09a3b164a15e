"""The decoder of plain blocks: padding, annealed masks, permutations, and torch's own encoder layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from wsis.errors import InputError
from wsis.nn.backbone import Backbone, BackboneSettings
from wsis.nn.mask_decoder import Block, MaskDecoder, Upscaler, inside, mask_share, place

CONVOLUTIONAL = BackboneSettings("test_byobnet", "none", 32, 3, 0)
PLAIN = BackboneSettings("test_vit", "none", 32, -1, 0)


def decoder(settings: BackboneSettings = CONVOLUTIONAL, **changes) -> MaskDecoder:
    torch.manual_seed(0)
    sizes = {"width": 32, "queries": 7, "blocks": 2, "heads": 4, **changes}
    return MaskDecoder(Backbone(settings), 3, **sizes)


def maps_of(settings: BackboneSettings, size: tuple[int, int], seed: int) -> list[Tensor]:
    """Maps of an image alone, as its backbone would make them."""
    backbone, g = Backbone(settings), torch.Generator().manual_seed(seed)
    height, width = (-(-side // backbone.divisor) * backbone.divisor for side in size)
    pairs = zip(backbone.widths, backbone.strides, strict=True)
    return [torch.randn(1, d, height // s, width // s, generator=g) for d, s in pairs]


def padded(small: Tensor, like: Tensor) -> Tensor:
    """A map at the top left of a larger one of noise."""
    result = 9 * torch.randn_like(like)
    result[..., : small.shape[2], : small.shape[3]] = small
    return result


@pytest.mark.slow
@pytest.mark.parametrize("settings", [CONVOLUTIONAL, PLAIN], ids=["convolutional", "plain"])
@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_padding_changes_nothing(settings, progress):
    """Two images of different sizes give together what they give alone, whatever lies beyond."""
    sizes = [(40, 90), (100, 70)]
    model = decoder(settings).eval()
    model.progress.fill_(progress)
    alone = [maps_of(settings, size, seed) for seed, size in enumerate(sizes)]
    frame = maps_of(settings, (100, 90), 9)
    together = [
        torch.cat([padded(one, like), padded(other, like)])
        for one, other, like in zip(*alone, frame, strict=True)
    ]
    with torch.no_grad():
        (found,) = model(together, sizes)
        for i, (maps, size) in enumerate(zip(alone, sizes, strict=True)):
            (expected,) = model(maps, [size])
            torch.testing.assert_close(found.classes[i], expected.classes[0], atol=1e-4, rtol=1e-4)
            height, width = (int(-(-side // model.upscale.stride)) for side in size)
            cut = (..., slice(height), slice(width))
            torch.testing.assert_close(
                found.masks[i][cut], expected.masks[0][cut], atol=1e-4, rtol=1e-4
            )


def run(model: MaskDecoder) -> list[Tensor]:
    torch.manual_seed(3)
    steps = model(maps_of(CONVOLUTIONAL, (64, 96), 0), [(64, 96)])
    return [tensor for found in steps for tensor in found]


def test_attention_is_plain_where_masks_are_annealed_away(monkeypatch):
    model = decoder()
    with torch.no_grad():
        masked = run(model)
        model.progress.fill_(1.0)
        annealed = run(model)
        monkeypatch.setattr("wsis.nn.mask_decoder._attended", lambda *_: None)
        plain = run(model)
        evaluated = run(model.eval())
    assert all(torch.equal(a, b) for a, b in zip(annealed, plain, strict=True))
    assert torch.equal(annealed[0], masked[0]), "nothing is masked before the first block"
    assert not torch.allclose(annealed[2], masked[2])
    assert all(torch.equal(a, b) for a, b in zip(evaluated, plain[-2:], strict=True))


def test_a_masked_query_sees_no_token_beyond_its_mask():
    """Changing a token in the masks of no query changes no query, before tokens have spoken."""
    model = decoder(blocks=1)
    allowed: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, given: allowed.append(given[1]))
    with torch.no_grad():
        first, _ = model(maps_of(CONVOLUTIONAL, (64, 96), 0), [(64, 96)])
    coarse = first.masks[0].unflatten(2, (24, 1)).unflatten(1, (16, 1)).squeeze()
    means = coarse.view(7, 4, 4, 6, 4).mean((2, 4)).flatten(1)
    assert torch.equal(allowed[0][0, 0, :7, 7:], means > 0)
    assert allowed[0][0, 0, :, :7].all(), "queries see each other"
    assert allowed[0][0, 0, 7:].all(), "tokens see all"


def test_masks_are_annealed_block_by_block():
    shares = torch.tensor([[mask_share(t / 60, i, 4) for i in range(4)] for t in range(61)])
    assert (shares[:11] == 1).all(), "first sixth"
    assert (shares[50:] == 0).all(), "last sixth"
    assert (shares.diff(dim=0) <= 0).all()
    assert (shares.diff(dim=1) >= 0).all(), "earlier blocks are freed first"
    assert shares[15, 0] == pytest.approx(0.5**0.9)
    assert ((shares > 0) & (shares < 1)).sum(1).max() == 1


def test_queries_may_come_in_any_order():
    model, new = decoder().eval(), torch.randperm(7)
    with torch.no_grad():
        classes, masks = run(model)
        model.queries.data, model.points = model.queries[new], model.points[new]
        again, other = run(model)
    torch.testing.assert_close(again, classes[:, new], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(other, masks[:, new], atol=1e-4, rtol=1e-4)


def test_a_block_is_torchs_encoder_layer():
    torch.manual_seed(0)
    ours = Block(16, 4)
    theirs = nn.TransformerEncoderLayer(16, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
    names = {
        "self_attn.in_proj_": "inputs.",
        "self_attn.out_proj.": "output.",
        "linear1.": "layers.0.",
        "linear2.": "layers.2.",
        "norm1.": "before.",
        "norm2.": "between.",
    }
    state = ours.state_dict()
    theirs.load_state_dict(
        {old + end: state[new + end] for old, new in names.items() for end in ("weight", "bias")}
    )
    given, allowed = torch.randn(2, 9, 16), torch.rand(9, 9) < 0.7
    allowed.fill_diagonal_(True)
    torch.testing.assert_close(ours(given, None), theirs(given))
    torch.testing.assert_close(
        ours(given, allowed.expand(2, 1, 9, 9)), theirs(given, src_mask=~allowed)
    )


@pytest.mark.parametrize(
    ("settings", "stride", "levels"),
    [
        (CONVOLUTIONAL, 4, [2, 1]),
        (BackboneSettings("test_byobnet", "none", 32, -1, 0), 4, [3, 2, 1]),
        (BackboneSettings("test_byobnet", "none", 32, 0, 0), 2, []),
        (PLAIN, 4, [None, None]),
    ],
)
def test_pixels_are_enlarged_to_stride_4(settings, stride, levels):
    backbone = Backbone(settings)
    upscale = Upscaler(backbone, 8)
    assert (upscale.stride, upscale.levels) == (stride, levels)
    grid = torch.randn(1, 8, *(64 // backbone.stride,) * 2)
    pixels = upscale(grid, maps_of(settings, (64, 64), 0), [(64, 64)])
    assert pixels.shape == (1, 8, 64 // stride, 64 // stride)


def test_places_differ_and_cells_of_padding_are_known():
    points = torch.cartesian_prod(torch.arange(20), torch.arange(20)) / 20
    apart = torch.cdist(place(points, 64), place(points, 64)) + 99 * torch.eye(400)
    assert apart.min() > 0.5
    found = inside([(33, 64), (64, 1)], 16, torch.zeros(2, 1, 4, 4))
    assert found[:, 0].sum((1, 2)).tolist() == [3 * 4, 4 * 1]
    assert found[0, 0, 2, 3]
    assert not found[0, 0, 3, 3]


def test_heads_divide_the_width():
    with pytest.raises(InputError, match="width 32 with 5 heads"):
        decoder(heads=5)
