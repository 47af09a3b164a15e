from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsis.errors import InputError
from wsis.images.read import (
    as_pixels,
    image_size,
    other_files,
    pictures,
    read_grey,
    read_image,
    read_labels,
)


@pytest.fixture
def colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 11, 3), np.uint8)


def write(path: Path, array: np.ndarray, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def test_pictures_of_a_folder(tmp_path: Path) -> None:
    for name in (
        "b.JPG",
        "a/c.png",
        "a/b/d.tiff",
        "._b.jpg",
        ".thumbnails/b.jpg",
        "a/.d.png",
        "notes.txt",
        "paper.pdf",
        "jpg",
    ):
        (tmp_path / ".data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / ".data" / name).touch()
    (tmp_path / ".data/album.jpg").mkdir()
    found = pictures(tmp_path / ".data")
    assert [str(path.relative_to(tmp_path / ".data")) for path in found] == [
        "a/b/d.tiff",
        "a/c.png",
        "b.JPG",
    ]
    others = [str(path.relative_to(tmp_path / ".data")) for path in other_files(tmp_path / ".data")]
    assert others == ["jpg", "notes.txt", "paper.pdf"]
    assert pictures(tmp_path / "none") == []


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    for name in ("in/a.png", "elsewhere/b.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/up").symlink_to(tmp_path / "in")
    assert [path.name for path in pictures(tmp_path / "in")] == ["a.png", "b.png"]


def test_png_is_read_exactly(tmp_path: Path, colours: np.ndarray) -> None:
    image = read_image(write(tmp_path / "a.png", colours))
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    np.testing.assert_array_equal(image.numpy(), colours.transpose(2, 0, 1))


def test_grey_becomes_three_equal_channels(tmp_path: Path, colours: np.ndarray) -> None:
    image = read_image(write(tmp_path / "a.png", colours[..., 0]))
    np.testing.assert_array_equal(image.numpy(), np.stack([colours[..., 0]] * 3))


def test_16_bits_keep_their_brightness(tmp_path: Path) -> None:
    eight = np.arange(256, dtype=np.uint16).reshape(16, 16)
    image = read_image(write(tmp_path / "a.png", eight * 257))
    np.testing.assert_array_equal(image[0].numpy(), eight)


def test_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red = read_image(tmp_path / "a.jpg").float().mean((1, 2))
    np.testing.assert_allclose(red.numpy(), [255, 0, 0], atol=3)


def test_palette(tmp_path: Path, colours: np.ndarray) -> None:
    few = Image.fromarray(colours).quantize(8)
    few.save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        read_image(tmp_path / "a.png").permute(1, 2, 0).numpy(), np.asarray(few.convert("RGB"))
    )


def test_transparent_becomes_white(tmp_path: Path) -> None:
    array = np.zeros((2, 2, 4), np.uint8)
    array[0, 0] = (10, 20, 30, 255)
    image = read_image(write(tmp_path / "a.png", array))
    assert image[:, 0, 0].tolist() == [10, 20, 30]
    assert image[:, 1, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path: Path, colours: np.ndarray, orientation: int) -> None:
    # the eight orientations by EXIF 2.3: what turns the stored rows and columns into the upright picture
    upright = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a),
    }[orientation](colours)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(tmp_path / "a.png", colours, exif=exif)
    np.testing.assert_array_equal(read_image(path).permute(1, 2, 0).numpy(), upright)
    assert image_size(path) == upright.shape[:2]


def test_annotated_before_turning_stays_unturned(tmp_path: Path, colours: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = write(tmp_path / "a.png", colours, exif=exif)
    np.testing.assert_array_equal(read_image(path, (7, 11)).permute(1, 2, 0).numpy(), colours)
    assert read_image(path, (11, 7)).shape == (3, 11, 7)


def test_another_size_is_an_error(tmp_path: Path, colours: np.ndarray) -> None:
    path = write(tmp_path / "a.png", colours)
    with pytest.raises(InputError, match=r"a\.png is 11 x 7 pixels but annotated as 5 x 9"):
        read_image(path, (9, 5))


def test_unreadable_files_are_named_in_one_line(tmp_path: Path, colours: np.ndarray) -> None:
    whole = write(tmp_path / "whole.jpg", colours).read_bytes()
    bad = {
        "zero.jpg": b"",
        "broken.jpg": whole[: len(whole) // 2],
        "text.jpg": b"<html>not found</html>",
    }
    png = write(tmp_path / "whole.png", colours).read_bytes()
    bad["broken.png"] = png[:-30]
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name) as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert "fetch it again" in str(caught.value)
    assert image_size(tmp_path / "broken.png") == (7, 11), "the header is whole"
    with pytest.raises(InputError, match="0 bytes"):
        image_size(tmp_path / "zero.jpg")
    with pytest.raises(InputError, match=r"no image .*absent\.jpg"):
        read_image(tmp_path / "absent.jpg")


def test_label_map_keeps_indices(tmp_path: Path, colours: np.ndarray) -> None:
    picture = Image.fromarray(colours[..., 0]).convert("P")
    picture.putpalette(list(reversed(range(256))) * 3)
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), np.asarray(picture))
    with pytest.raises(InputError, match="colour image"):
        read_labels(write(tmp_path / "b.png", colours))


RAMP = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (3, 1))
EIGHT = (RAMP * 255).round().astype(np.uint8)


@pytest.mark.parametrize(
    ("values", "top"),
    [
        (RAMP, 1),
        (RAMP * 255, 255),
        (RAMP * 65535, 65535),
        ((RAMP * 255).astype(np.int32), 255),
        ((RAMP * 65535).astype(np.int32), 65535),
        ((RAMP * 1023).astype(np.uint16), 1023),
        ((RAMP * 4095).astype(np.uint16), 4095),
        ((RAMP * 16383).astype(np.uint16), 16383),
        ((RAMP * 65535).astype(np.uint16), 65535),
        ((RAMP * 65535).astype(">u2"), 65535),
        ((RAMP > 0.5).astype(np.float32), 1),
    ],
    ids=lambda value: str(getattr(value, "dtype", value)),
)
def test_numbers_that_are_not_8_bits_ascend_over_all_of_them(
    tmp_path: Path, values: np.ndarray, top: int
) -> None:
    path = write(tmp_path / "a.tif", values)
    expected = np.round(values.astype(float) * 255 / top)
    for found in (read_image(path).numpy(), as_pixels(Image.open(path)).transpose(2, 0, 1)):
        assert (np.diff(found[0].astype(int)) >= 0).all()
        assert (found[0, 0, 0], found[0, 0, -1]) == (0, 255)
        np.testing.assert_allclose(found, np.stack([expected] * 3), atol=1)
    np.testing.assert_allclose(read_grey(path), expected, atol=1)


def test_images_of_one_kind_stay_comparable(tmp_path: Path) -> None:
    """A dark image of 12 bits is not stretched to the brightness of a bright one."""
    bright = read_image(write(tmp_path / "a.tif", (RAMP * 4095).astype(np.uint16)))
    dark = read_image(write(tmp_path / "b.tif", (RAMP * 2000).astype(np.uint16)))
    assert bright.max() == 255
    assert dark.max() == round(2000 / 4095 * 255)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ((RAMP * 1e6).astype(np.int32), "from 0 to 1e"),
        ((RAMP * 3000 - 1000).astype(np.int32), "from -1000 to 2000"),
        (np.where(RAMP > 0.5, np.nan, RAMP), "nan"),
        (RAMP * np.float32(1e9), "1e"),
    ],
)
def test_numbers_without_a_rule_are_refused(tmp_path: Path, values: np.ndarray, told: str) -> None:
    path = write(tmp_path / "a.tif", values)
    for read in (read_image, read_grey, lambda path: as_pixels(Image.open(path))):
        with pytest.raises(InputError, match=told) as caught:
            read(path)
        assert "a.tif has numbers" in str(caught.value)
        assert "8 or 16 bits; convert it" in str(caught.value)


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"]
WHITE = {"F": 1.0, "I": 65535, "I;16": 65535, "I;16B": 65535, "I;16L": 65535}
WHITE |= {"LAB": (255, 128, 128), "HSV": (0, 0, 255)}


@pytest.mark.parametrize("mode", [*MODES, "RGBa", *WHITE])
def test_white_of_every_mode_is_white(mode: str) -> None:
    if mode in WHITE:
        image = Image.new(mode, (4, 4), WHITE[mode])
    else:
        image = Image.new("RGB", (4, 4), "white")
        for step in {"PA": ("P", "PA"), "RGBa": ("RGBA", "RGBa")}.get(mode, (mode,)):
            image = image.convert(step)
    assert image.mode == mode
    np.testing.assert_allclose(as_pixels(image), np.full((4, 4, 3), 255), atol=2)


def test_lab_is_converted_by_its_definition(tmp_path: Path) -> None:
    """The red of sRGB is L* 54.3, a* 80.8, b* 69.9 under D50; Pillow adds 128 to the last two."""
    Image.new("LAB", (4, 4), (138, 209, 198)).save(tmp_path / "a.tif")
    red = read_image(tmp_path / "a.tif")[:, 0, 0].tolist()
    np.testing.assert_allclose(red, [255, 0, 0], atol=6)


def test_label_maps_beyond_8_bits_are_refused(tmp_path: Path) -> None:
    for values in (np.full((2, 2), 256, np.uint16), np.full((2, 2), 0.5, np.float32)):
        with pytest.raises(InputError, match="whole numbers from 0 to 255"):
            read_labels(write(tmp_path / "a.tif", values))
    same = read_labels(write(tmp_path / "b.tif", np.full((2, 2), 255, np.uint16)))
    assert (same == 255).all()


def test_images_beyond_pillows_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.png", np.zeros((30, 30), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(InputError, match=r"a\.png has 900 pixels, and at most 800 .*shrink it"):
        read_image(path)


def test_the_first_picture_of_an_animation(tmp_path: Path, colours: np.ndarray) -> None:
    first, second = (Image.fromarray(part[..., 0]) for part in (colours, 255 - colours))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    np.testing.assert_array_equal(read_image(tmp_path / "a.gif")[0].numpy(), colours[..., 0])


@pytest.mark.parametrize("name", ["a.heic", "renamed.jpg"])
def test_heic(tmp_path: Path, name: str) -> None:
    heif = pytest.importorskip("pillow_heif")
    pixels = np.zeros((64, 32, 3), np.uint8)
    pixels[:32] = (200, 40, 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = heif.from_pillow(Image.fromarray(pixels))
    picture.save(tmp_path / "a.heic", quality=90, exif=exif.tobytes())
    (tmp_path / "a.heic").rename(tmp_path / name)
    image = read_image(tmp_path / name)
    assert image_size(tmp_path / name) == image.shape[1:] == (32, 64)
    expected = np.rot90(pixels, -1).transpose(2, 0, 1)
    assert abs(image.numpy().astype(int) - expected).mean() < 5


def test_heic_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "OPEN", {k: v for k, v in Image.OPEN.items() if "HEI" not in k})
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if "HEI" not in name])
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(50))
    assert pictures(tmp_path) == [tmp_path / "a.HEIC"], "so that it is not left out in silence"
    for read in (read_image, image_size):
        with pytest.raises(InputError, match=r'a\.HEIC is a HEIC photo: pip install "wsis'):
            read(tmp_path / "a.HEIC")


def test_links_that_lead_nowhere_are_listed(tmp_path: Path) -> None:
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    assert [path.name for path in pictures(tmp_path)] == ["gone.jpg", "loop.jpg"]
    for path in pictures(tmp_path):
        with pytest.raises(InputError, match=path.name):
            read_image(path)


@pytest.mark.timeout(20)
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(InputError, match=r"pipe\.jpg is a pipe"):
        image_size(tmp_path / "pipe.jpg")


def test_a_name_that_is_too_long_is_one_line() -> None:
    with pytest.raises(InputError, match=r"cannot read image y+\.jpg .*too long"):
        image_size(Path(300 * "y" + ".jpg"))
