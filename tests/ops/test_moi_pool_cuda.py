"""The kernels for CUDA, compiled for the CPU (`emulation/cuda_runtime.h`), against the reference."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from wsis.ops.build import SOURCES, _headers, _libraries
from wsis.ops.moi_pool import moi_pool_backward_reference, moi_pool_reference

COMPILER = shutil.which("g++")
EMULATION = Path(__file__).parent / "emulation"
OURS = {
    "extern __shared__ Pack<double, 2> shared[];": "double* shared = emulation::shared.data();",
    "torch::stable::accelerator": "emulation",
    "(wsis, CUDA, m)": "(wsis_emulated, CPU, m)",
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="no g++ here"),
]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """The operators of the emulated kernels."""
    folder = tmp_path_factory.mktemp("emulated")
    text = (SOURCES / "moi_pool.cu").read_text()
    for theirs, ours in OURS.items():
        assert theirs in text
        text = text.replace(theirs, ours)
    (folder / "moi_pool.cpp").write_text(text)
    for name in ("cuda_fp16.h", "cuda_bf16.h"):
        (folder / name).touch()
    flags = ["-O1", "-std=c++20", "-ffp-contract=off", "-fPIC", "-shared", "-w", *_headers()]
    # a GPU does not read 16 bytes from an odd address: end the process there
    flags += ["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"]
    folders = [f"-I{place}" for place in (folder, EMULATION, SOURCES)]
    library = folder / "moi_pool.so"
    parts = [str(folder / "moi_pool.cpp"), *_libraries("torch_cpu"), "-o", str(library)]
    subprocess.run([COMPILER, *flags, *folders, *parts], check=True)
    for name in ("moi_pool", "moi_pool_backward"):
        schema = str(getattr(torch.ops.wsis, name).default._schema)
        torch.library.define(f"wsis_emulated::{name}", schema.removeprefix(f"wsis::{name}"))
    torch.ops.load_library(library)
    return torch.ops.wsis_emulated


def case(seed):
    """Arguments of `moi_pool`: boxes that leave the map, ties, NaN, odd layouts and sizes."""
    r, g = random.Random(seed), torch.Generator().manual_seed(seed)
    dtype = r.choice([torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16])
    images, count = r.choice([1, 1, 3]), r.choice([1, 2, 5, 40])
    channels = r.choice([1, 5, 16, 70, 128, 264]) if count < 40 else 3
    height, width = r.choice([(1, 1), (9, 11), (20, 40), (5, 130), (40, 7)])
    limit = torch.tensor([width, height]) * 8.0
    corner = torch.rand(count, 2, generator=g) * limit - 12
    sides = torch.rand(count, 2, generator=g) * limit * r.choice([0.3, 1, 1.5])
    image = torch.randint(images, (count, 1), generator=g)
    boxes = torch.cat([image, corner, corner + sides], 1)
    features = torch.randn(images, channels, height, width, generator=g)
    if r.random() < 0.5:
        features = (features * 2).round()
    for value in (-torch.inf, torch.nan):
        if r.random() < 0.2:
            features[torch.rand(features.shape, generator=g) < 0.05] = value
    cells = torch.rand(count, height, width, generator=g) > r.choice([-1, 0.4, 0.95])
    layout = r.choice(["first", "last", "part"])
    if layout == "last":
        features = features.contiguous(memory_format=torch.channels_last)
    features = features.to(dtype)
    if layout == "part":  # some channels of a channels-last map
        first, more = r.choice([(3, 5), (8, 16), (8, 13)])
        wide = torch.zeros(images, height, width, channels + more, dtype=dtype)
        wide[..., first : first + channels] = features.permute(0, 2, 3, 1)
        features = wide[..., first : first + channels].permute(0, 3, 1, 2)
    rows, columns = r.choice([(7, 7), (7, 7), (1, 1), (2, 5), (8, 3), (9, 7)])
    return features, boxes, cells, rows, columns, 0.125, r.choice([0, 1, 2])


def compare(emulated, arguments, seed):
    """Assert that both passes do as the reference does; return the images of the regions."""
    features, boxes = arguments[:2]
    pooled, places, factors = moi_pool_reference(*arguments, True)
    found = emulated.moi_pool(*arguments, True)
    torch.testing.assert_close(found[0], pooled, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found[2], factors)
    sure = ~pooled.isnan()  # of several NaN any may be told
    assert torch.equal(found[1][sure], places[sure])
    alone, none, _ = emulated.moi_pool(*arguments, False)
    torch.testing.assert_close(alone, pooled, rtol=0, atol=0, equal_nan=True)
    assert none.numel() == 0
    g = torch.Generator().manual_seed(seed)
    grad = torch.randn(pooled.shape, generator=g).to(features.dtype)
    rest = grad, places, factors, boxes, features.shape[0], *features.shape[2:]
    maps, expected = emulated.moi_pool_backward(*rest), moi_pool_backward_reference(*rest)
    close = 1e-2 if features.element_size() == 2 else 1e-5
    torch.testing.assert_close(maps, expected, rtol=close, atol=close)
    assert torch.equal(emulated.moi_pool_backward(*rest), maps)


@pytest.mark.parametrize("seed", range(60))
def test_random_cases(emulated, seed):
    compare(emulated, case(seed), seed)


@pytest.mark.parametrize(("height", "width"), [(100, 165), (183, 183)])
def test_maps_whose_sums_do_not_fit_in_shared_memory(emulated, height, width):
    """The larger one has more cells than 16 bits can number."""
    g = torch.Generator().manual_seed(0)
    boxes = torch.tensor(
        [[0.0, 8, 8, 1200, 700], [0, -300, 0, 5000, 5000], [0, 500, 300, 508, 316]]
    )
    features = torch.randn(1, 3, height, width, generator=g).half()
    cells = torch.rand(3, height, width, generator=g) > 0.6
    compare(emulated, (features, boxes, cells, 3, 4, 0.125, 1), 0)


def test_what_is_not_there(emulated):
    """Boxes that are no numbers are far outside; images that are not there give NaN, no gradient."""
    features, cells = torch.randn(1, 5, 6, 6), torch.ones(5, 6, 6, dtype=torch.bool)
    boxes = torch.tensor([[0.0, 8, 8, 32, 32]]).repeat(5, 1)
    boxes[1, 1:], boxes[2, 1:] = torch.nan, torch.tensor([-torch.inf, -1e30, 1e30, torch.inf])
    compare(emulated, (features, boxes, cells, 7, 7, 0.125, 1), 0)
    boxes[3, 0], boxes[4, 0] = 7, torch.nan
    pooled, places, factors = emulated.moi_pool(features, boxes, cells, 7, 7, 0.125, 1, True)
    assert pooled[3:].isnan().all()
    assert (places[3:] == -1).all()
    assert pooled[:3].isfinite().all()
    maps = emulated.moi_pool_backward(torch.ones_like(pooled), places, factors, boxes, 1, 6, 6)
    assert maps.isfinite().all()
    with pytest.raises(RuntimeError, match="places were not kept"):
        emulated.moi_pool_backward(pooled, places[:0], factors, boxes, 1, 6, 6)
    for empty in ((0, 5, 6, 6), (1, 0, 6, 6), (1, 5, 0, 6)):
        shape = 5, *empty[2:]
        pooled, *_ = emulated.moi_pool(
            torch.zeros(empty), boxes, cells.new_zeros(shape), 2, 2, 0.125, 1, False
        )
        assert pooled.shape == (5, empty[1], 2, 2)
