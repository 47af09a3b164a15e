from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsis.errors import InputError
from wsis.images.read import image_size, pictures, read_image, read_labels


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
    assert pictures(tmp_path / "none") == []


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
