"""Archives cannot write outside of their folder, and cannot fill the disk."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from toy_shared import bare

from wsis.errors import InputError
from wsis.sharing import archives
from wsis.sharing.archives import unpack

KINDS = ("zip", "tar", "tar.gz", "tgz")


def pack(path: Path, files: dict[str, bytes]) -> Path:
    """Write an archive with members of any name."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, content in files.items():
                zipped.writestr(name, content)
        return path
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def content_of(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def files(tmp_path) -> dict[str, bytes]:
    return content_of(bare(tmp_path / "bare"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("above", ["", "horses/", "./", "./horses/"])
def test_unpacked_whole(kind, above, files, tmp_path):
    archive = pack(tmp_path / f"a.{kind}", {above + name: files[name] for name in files})
    unpack(archive, tmp_path / "cache/there", "a")
    assert content_of(tmp_path / "cache/there") == files
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["there"]


def test_what_a_mac_adds_is_no_obstacle(files, tmp_path):
    more = {f"horses/{name}": files[name] for name in files} | {"__MACOSX/._horses": b"x"}
    unpack(pack(tmp_path / "a.zip", more), tmp_path / "there", "a")
    assert content_of(tmp_path / "there") == files


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["../out.txt", "a/../../out.txt", "{outside}/out.txt", "..\\out.txt"]
)
def test_no_path_leaves_it(kind, name, files, tmp_path):
    name = name.format(outside=tmp_path)
    archive = pack(tmp_path / f"a.{kind}", {**files, name: b"evil"})
    with pytest.raises(InputError, match="a path that leaves it"):
        unpack(archive, tmp_path / "cache/there", "a")
    assert not list(tmp_path.rglob("*out.txt"))
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("kind", ["symlink", "hard link", "device", "zip"])
def test_no_links(kind, files, tmp_path):
    archive = tmp_path / ("a.zip" if kind == "zip" else "a.tar")
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as zipped:
            info = zipfile.ZipInfo("model.safetensors")
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            zipped.writestr(info, "/etc/passwd")
    else:
        types = {
            "symlink": tarfile.SYMTYPE,
            "hard link": tarfile.LNKTYPE,
            "device": tarfile.CHRTYPE,
        }
        with tarfile.open(archive, "w") as tar:
            entry = tarfile.TarInfo("model.safetensors")
            entry.type, entry.linkname = types[kind], "/etc/passwd"
            tar.addfile(entry)
    with pytest.raises(InputError, match="in place of a file"):
        unpack(archive, tmp_path / "there", "a")
    assert not (tmp_path / "there").exists()


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(archives, "ALLOWANCE", 2**16)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("small")
def test_no_bombs(kind, files, tmp_path):
    bomb = pack(tmp_path / f"a.{kind}", files | {"bomb.bin": bytes(2**21)})
    if kind == "tar":  # which does not shrink, and may hold what it holds
        unpack(bomb, tmp_path / "there", "a")
        return
    with pytest.raises(InputError, match="would unpack to more than"):
        unpack(bomb, tmp_path / "there", "a")
    assert not (tmp_path / "there").exists()


@pytest.mark.usefixtures("small")
def test_no_bombs_in_the_headers_of_a_tar(tmp_path):
    """A header of the kind that tarfile reads into memory, as long as it says."""
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 2**22
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(header.tobuf() + bytes(2**22)))
    with pytest.raises(InputError, match="would unpack to more than"):
        unpack(path, tmp_path / "there", "a")


def test_not_too_many_files(files, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_MEMBERS", 20)
    many = {f"{k}.txt": b"" for k in range(20)}
    with pytest.raises(InputError, match="20 files"):
        unpack(pack(tmp_path / "a.zip", many | files), tmp_path / "there", "a")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged(kind, files, tmp_path):
    archive = pack(tmp_path / f"a.{kind}", files)
    whole = archive.read_bytes()
    for content in (b"", b"no archive at all", whole[: len(whole) // 2]):
        archive.write_bytes(content)
        with pytest.raises(InputError) as caught:
            unpack(archive, tmp_path / "there", "a")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "there").exists()


def test_without_a_model(tmp_path):
    with pytest.raises(InputError, match="holds no shared model"):
        unpack(pack(tmp_path / "a.zip", {"a.txt": b""}), tmp_path / "there", "a")


def test_a_damaged_folder_is_replaced(files, tmp_path):
    archive = pack(tmp_path / "a.zip", files)
    unpack(archive, tmp_path / "there", "a")
    (tmp_path / "there/config.yaml").write_text("other")
    unpack(archive, tmp_path / "there", "a")
    assert content_of(tmp_path / "there") == files
