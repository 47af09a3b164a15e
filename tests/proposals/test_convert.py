from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import scipy.io
from pycocotools import mask as rle

from wsis.errors import InputError
from wsis.proposals.arrays import encode
from wsis.proposals.convert import convert, proposals_of
from wsis.proposals.file import ProposalFile
from wsis.proposals.found import Found, Outlines
from wsis.types import Index

SIZE = 20, 30  # height, width
# two images; x1, y1, x2, y2 from 0, x2/y2 exclusive; best first
BOXES = [np.float32([[2, 1, 28, 7], [0, 0, 30, 20], [5, 6, 10, 19]]), np.float32([[21, 3, 30, 9]])]
SCORES = [np.array([0.9, 0.5, 0.1]), np.array([0.7])]
NAMES = ["2007_000032", "2007_000033"]


def index(names=NAMES, ids=(2007000032, 2007000033)):
    images = [
        {"id": i, "file_name": f"{name}.jpg", "height": SIZE[0], "width": SIZE[1]}
        for name, i in zip(names, ids, strict=True)
    ]
    return Index(name="test", root=None, images=images, categories=[])


def rows_first(boxes):
    """y1, x1, y2, x2 from 1, inclusive."""
    return boxes[:, [1, 0, 3, 2]] + np.array([1, 1, 0, 0])


def cells(items):
    array = np.empty((len(items), 1), object)
    array[:, 0] = items
    return array


def read(path, tmp_path, names=NAMES, **ids):
    file = ProposalFile(convert(path, index(names, **ids), tmp_path / "out.sqlite"))
    return [file.read(f"{name}.jpg", SIZE, segments=False) for name in names]


def check_boxes(found, scores=SCORES):
    for got, boxes, own in zip(found, BOXES, scores, strict=True):
        assert got.boxes.numpy() == pytest.approx(boxes)
        assert got.scores.numpy() == pytest.approx(own, abs=1e-6)


def halves():
    """A label map of four quarters, and three masks as sets of them."""
    labels = np.zeros(SIZE, np.int32)
    labels[10:] += 2
    labels[:, 15:] += 1
    return labels, np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 1]], bool)


def found_of(masks):
    return Found("x", None, outlines=Outlines(list(map(encode, masks)), [""] * len(masks)))


def check_masks(path, tmp_path, name, expected, scores, **ids):
    read_back = ProposalFile(convert(path, index([name], **ids), tmp_path / "out.sqlite")).read(
        f"{name}.jpg", SIZE, True
    )
    order = np.argsort(-np.asarray(scores), kind="stable")
    masks = read_back.members[:, read_back.labels.long()].numpy()
    assert (masks == expected[order]).all()
    assert read_back.scores.numpy() == pytest.approx(np.asarray(scores)[order], abs=1e-6)
    for mask, box in zip(masks, read_back.boxes.tolist(), strict=True):
        ys, xs = np.nonzero(mask)
        assert box == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@pytest.mark.parametrize("one", [False, True])
def test_selective_search_mat(tmp_path, one):
    count = 1 if one else 2
    boxes, names = cells([rows_first(b) for b in BOXES[:count]]), cells(NAMES[:count])
    scipy.io.savemat(tmp_path / "ss.mat", {"boxes": boxes, "images": names})
    found = read(tmp_path / "ss.mat", tmp_path, NAMES[:count], ids=(1, 2)[:count])
    for got, expected in zip(found, BOXES, strict=False):
        assert got.boxes.numpy() == pytest.approx(expected)
        assert (got.scores == 1).all()


def test_edge_boxes_mat(tmp_path):
    content = {
        "boxes": cells([rows_first(b) for b in BOXES]),
        "images": cells(NAMES),
        "boxScores": cells(SCORES),
    }
    scipy.io.savemat(tmp_path / "eb.mat", content)
    check_boxes(read(tmp_path / "eb.mat", tmp_path))


@pytest.mark.parametrize(("boxes", "scores"), [("boxes", "scores"), ("bboxes", "bboxes_scores")])
def test_mcg_boxes_folder(tmp_path, boxes, scores):
    (tmp_path / "mcg").mkdir()
    for name, own, values in zip(NAMES, BOXES, SCORES, strict=True):
        shuffled = np.arange(len(own))[::-1]
        content = {boxes: rows_first(own)[shuffled], scores: values[shuffled, None]}
        scipy.io.savemat(tmp_path / "mcg" / f"{name}.mat", content)
    check_boxes(read(tmp_path / "mcg", tmp_path))


def test_axes_are_told_apart_by_what_fits():
    columns_first = BOXES[0] + np.array(
        [1, 1, 0, 0]
    )  # a .mat that is x1, y1, x2, y2 against its format
    got = proposals_of(
        Found("x", SCORES[0], columns_first, rows_first=True, base=1, inclusive=True), SIZE
    )
    assert got.boxes.numpy() == pytest.approx(BOXES[0])


@pytest.mark.parametrize("struct", [False, True])
def test_mcg_proposals(tmp_path, struct):
    labels, members = halves()
    scores = [0.3, 0.9, 0.5]
    content = {
        "superpixels": labels + 1,
        "labels": cells([np.flatnonzero(m)[None] + 1 for m in members]),
        "scores": scores,
    }
    if struct:
        extra = {"bboxes": np.ones((9, 4)), "bboxes_scores": np.ones(9)}
        content = {"candidates": {**content, **extra}}
    (tmp_path / "mcg").mkdir()
    scipy.io.savemat(tmp_path / "mcg" / "2007_000032.mat", content)
    check_masks(tmp_path / "mcg", tmp_path, "2007_000032", members[:, labels], scores, ids=(1,))


def test_cob(tmp_path):
    masks = np.random.default_rng(0).random((5, *SIZE)) < 0.3
    (tmp_path / "cob").mkdir()
    path = tmp_path / "cob" / "COCO_train2014_000000000009.mat"
    scipy.io.savemat(path, {"maskmat": masks.transpose(1, 2, 0).astype(np.uint8)})
    check_masks(tmp_path / "cob", tmp_path, "000000000009", masks, np.ones(5), ids=(9,))


def test_a_cob_cell_of_stacks(tmp_path):
    masks = np.random.default_rng(0).random((2, *SIZE)) < 0.3
    scipy.io.savemat(
        tmp_path / "9.mat", {"maskmat": cells([masks.transpose(1, 2, 0).astype(np.uint8)])}
    )
    check_masks(tmp_path / "9.mat", tmp_path, "9", masks, np.ones(2), ids=(9,))


@pytest.mark.parametrize(
    ("names", "extra"),
    [
        ("ids", {"scores": SCORES, "bbox_mode": 0}),
        ("indexes", {"objectness_logits": [np.log(s / (1 - s)) for s in SCORES]}),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_detectron_pkl(tmp_path, names, extra, protocol):
    content = {
        "boxes": [b.astype(np.int16) for b in BOXES],
        names: [2007000032, 2007000033],
        **extra,
    }
    (tmp_path / "d.pkl").write_bytes(pickle.dumps(content, protocol))
    check_boxes(read(tmp_path / "d.pkl", tmp_path))


def test_detectron2_width_and_height(tmp_path):
    wide = [np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], 1) for b in BOXES]
    content = {"boxes": wide, "ids": NAMES, "scores": SCORES, "bbox_mode": 1}
    (tmp_path / "d.pkl").write_bytes(pickle.dumps(content))
    check_boxes(read(tmp_path / "d.pkl", tmp_path))


def test_wetectron_without_scores_and_voc_2007_numbers(tmp_path):
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"boxes": BOXES, "indexes": np.array([5, 7])}))
    check_boxes(read(tmp_path / "w.pkl", tmp_path, ["000005", "000007"]), [np.ones(3), np.ones(1)])


def test_python_2_pickle(tmp_path):
    """Protocol 0 as Python 2 and its numpy wrote it: bytes as text, modules by their old names."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I1\nI4\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR"
        b"(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS"
        + _python_2(np.array([3, 4, 9, 12], "<f4").tobytes())
        + b"\ntb"
    )
    text = b"(dS'boxes'\n(l" + array + b"asS'indexes'\n(lI9\nas."
    (tmp_path / "two.pkl").write_bytes(text)
    assert read(tmp_path / "two.pkl", tmp_path, ["9"], ids=(9,))[0].boxes.tolist() == [
        [3, 4, 9, 12]
    ]


def _python_2(data):
    return b"'" + b"".join(b"\\x%02x" % byte for byte in data) + b"'"


def test_jtsm_folder(tmp_path):
    labels, members = halves()
    (tmp_path / "jtsm").mkdir()
    scores = np.float32([0.2, 0.4, 0.8])
    inclusive = np.int16([[0, 0, 14, 9], [0, 0, 29, 9], [15, 0, 29, 19]])
    content = {
        "superpixels": labels.astype(np.int16),
        "oh_labels": members,
        "scores": scores,
        "boxes": inclusive,
    }
    (tmp_path / "jtsm" / "a.pkl").write_bytes(pickle.dumps({**content, "indexes": 2007000032}))
    check_masks(tmp_path / "jtsm", tmp_path, "2007_000032", members[:, labels], scores, ids=(1,))


@pytest.mark.parametrize("form", ["results", "counts", "sam"])
def test_run_length_json(tmp_path, form):
    masks = np.random.default_rng(1).random((4, *SIZE)) < 0.4
    scores = [0.1, 0.8, 0.3, 0.2]
    coded = [rle.encode(np.asfortranarray(m.astype(np.uint8))) for m in masks]
    entries = [{"segmentation": {**c, "counts": c["counts"].decode()}} for c in coded]
    if form == "counts":  # not compressed
        for entry, mask in zip(entries, masks, strict=True):
            flat = mask.T.ravel().astype(int)
            edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
            entry["segmentation"]["counts"] = np.diff([0, *edges, flat.size]).tolist()
    score = "predicted_iou" if form == "sam" else "score"
    entries = [
        {**entry, score: value, "image_id": 7} for entry, value in zip(entries, scores, strict=True)
    ]
    content = {"image": {"image_id": 7}, "annotations": entries} if form == "sam" else entries
    (tmp_path / "m.json").write_text(json.dumps(content))
    check_masks(tmp_path / "m.json", tmp_path, "7", masks, scores, ids=(7,))


CROSSED = (
    ["000002", "000007"],
    (1, 2),
)  # names and ids; the first image's name is the second one's id


def convert_crossed(path, tmp_path):
    file = ProposalFile(convert(path, index(*CROSSED), tmp_path / "out.sqlite"))
    check_boxes([file.read(f"{name}.jpg", SIZE) for name in CROSSED[0]])


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    "names", [{"ids": ["000002", "000007"]}, {"ids": [1, 2]}, {"indexes": [2, 7]}], ids=str
)
def test_names_are_surer_than_ids_but_numbers_that_are_ids(tmp_path, names, order):
    content = {
        "boxes": BOXES[::order],
        "scores": SCORES[::order],
        **{key: own[::order] for key, own in names.items()},
    }
    (tmp_path / "d.pkl").write_bytes(pickle.dumps(content))
    convert_crossed(tmp_path / "d.pkl", tmp_path)


@pytest.mark.parametrize("suffix", [".mat", ".MAT", ".pickle"])
def test_a_folder_of_files_named_as_the_images(tmp_path, suffix):
    (tmp_path / "all").mkdir()
    for name, boxes, scores in zip(CROSSED[0], BOXES, SCORES, strict=True):
        with (tmp_path / "all" / f"{name}{suffix}").open("wb") as file:
            if suffix == ".pickle":
                pickle.dump({"boxes": [boxes], "scores": [scores], "ids": [name]}, file)
            else:
                scipy.io.savemat(file, {"boxes": rows_first(boxes), "scores": scores})
    convert_crossed(tmp_path / "all", tmp_path)


def test_an_image_id_in_a_json_is_an_id(tmp_path):
    mask = rle.encode(np.asfortranarray(np.ones(SIZE, np.uint8)))
    entry = {"segmentation": {**mask, "counts": mask["counts"].decode()}}
    entries = [{**entry, "image_id": 1, "score": 0.25}, {**entry, "image_id": 2, "score": 0.5}]
    (tmp_path / "m.json").write_text(json.dumps(entries))
    file = ProposalFile(convert(tmp_path / "m.json", index(*CROSSED), tmp_path / "out.sqlite"))
    assert [file.read(f"{name}.jpg", SIZE).scores.tolist() for name in CROSSED[0]] == [
        [0.25],
        [0.5],
    ]


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ([5, 6000], "the run lengths cover 6005 pixels, not 20 x 30"),
        ([-5, 605], r"counts\[0\] is -5"),
        ("x", "no compressed run lengths"),
        (None, "counts is None"),
    ],
)
def test_run_lengths_are_checked(tmp_path, counts, says):
    entry = {"image_id": 1, "score": 1, "segmentation": {"size": [*SIZE], "counts": counts}}
    (tmp_path / "m.json").write_text(json.dumps([entry]))
    with pytest.raises(InputError, match=rf"m\.json, result 1.*{says}"):
        convert(tmp_path / "m.json", index("a", (1,)), tmp_path / "out.sqlite")


def test_boxes_are_clipped_and_degenerate_and_double_ones_dropped():
    boxes = np.array(
        [[-5, -5, 40, 30], [4, 4, 4, 9], [31, 2, 35, 9], [1, 1, 3, 3], [1, 1, 3, 3]], float
    )
    got = proposals_of(Found("x", np.array([0.1, 0.9, 0.8, 0.2, 0.3]), boxes), SIZE)
    assert got.boxes.tolist() == [[1, 1, 3, 3], [0, 0, 30, 20]]
    assert got.scores.tolist() == pytest.approx([0.3, 0.1])


def test_masks_of_one_box_are_both_kept():
    ring = np.ones(SIZE, bool)
    ring[5:10, 5:10] = False
    got = proposals_of(found_of([ring, np.ones(SIZE, bool), ring]), SIZE)
    assert got.boxes.tolist() == [[0, 0, 30, 20]] * 2


def test_no_proposals_are_legal(tmp_path):
    (tmp_path / "e.pkl").write_bytes(pickle.dumps({"boxes": [np.zeros((0, 4))], "ids": [1]}))
    assert len(read(tmp_path / "e.pkl", tmp_path, ["1"], ids=(1,))[0].boxes) == 0


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pkl", pickle.dumps({"boxes": [Evil()], "ids": [1]}), "not data"),
        ("a.pkl", pickle.dumps([1, 2]), "no known proposal format"),
        ("a.pkl", pickle.dumps({"boxes": [[1, 2, 3]], "ids": [1]}), "fields are not"),
        ("a.pkl", b"\x80", "cannot read"),
        ("a.mat", b"MATLAB 5.0 MAT-file" + bytes(100), "damaged"),
        ("a.json", b"{", "is not a whole json file"),
        ("a.txt", b"", "no known proposal format"),
    ],
)
def test_bad_files_are_told_in_one_line(tmp_path, capsys, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        convert(tmp_path / name, index(), tmp_path / "out.sqlite")
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ""


def test_an_unknown_mat_and_other_sizes_and_missing_images_are_told(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"nothing": 1})
    with pytest.raises(InputError, match="it holds nothing"):
        convert(tmp_path / "a.mat", index(), tmp_path / "out.sqlite")
    with pytest.raises(InputError, match="made for other images"):
        proposals_of(found_of([np.ones((3, 3))])._replace(size=(3, 3)), SIZE)
    (tmp_path / "d.pkl").write_bytes(pickle.dumps({"boxes": BOXES[:1], "ids": [NAMES[0]]}))
    with pytest.raises(InputError, match=r"1 of 2 images.*2007_000033"):
        convert(tmp_path / "d.pkl", index(), tmp_path / "o2.sqlite")
