"""Json records, pickled lists, maps and folders of pictures of other tools become proposals."""

from __future__ import annotations

import json
import pickle
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle

from wsis.data.index import write_coco
from wsis.errors import InputError
from wsis.metrics.results import to_annotations
from wsis.proposals.convert import convert, from_records
from wsis.proposals.file import ProposalFile
from wsis.types import Index, Prediction

SIZE = 20, 30
NAMES = ["a/one.jpg", "a/two.jpg"]
POLYGON = [[3.0, 2.0, 20.5, 2.0, 20.0, 15.25, 3.0, 15.0], [22.0, 1.0, 28.0, 1.0, 28.0, 9.0]]


def index() -> Index:
    images = [
        {"id": k, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
        for k, name in enumerate(NAMES, 7)
    ]
    return Index(name="test", root=None, images=images, categories=[{"id": 1, "name": "fg"}])


def rectangle(x: int, y: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[y:bottom, x:right] = 1
    return mask


def coded(mask: np.ndarray) -> dict[str, Any]:
    found = rle.encode(np.asfortranarray(mask))
    return {**found, "counts": found["counts"].decode()}


WHOLE, PART, OTHER = rectangle(2, 2, 14, 18), rectangle(3, 3, 8, 9), rectangle(16, 4, 28, 12)


def images_of(listed: bool = True) -> list[dict[str, Any]]:
    return [
        {"id": k, "file_name": name, **({"height": SIZE[0], "width": SIZE[1]} if listed else {})}
        for k, name in enumerate(NAMES, 1)
    ]


def read(path: Path, tmp_path: Path, name: str = NAMES[0], partial: bool = True):
    out = tmp_path / "out.sqlite"
    out.unlink(missing_ok=True)
    return ProposalFile(convert(path, index(), out, partial)).read(name, SIZE, None)


def masks_of(proposals) -> list[list[list[int]]]:
    return proposals.members[:, proposals.labels.long()].int().tolist()


def put(tmp_path: Path, content: Any, name: str = "p.json") -> Path:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(json.dumps(content))
    return tmp_path / name


SAM = [
    {"segmentation": coded(PART), "predicted_iou": 1.01, "stability_score": 0.99, "area": 30},
    {"segmentation": coded(OTHER), "predicted_iou": 0.9, "stability_score": 0.95},
    {"segmentation": coded(WHOLE), "predicted_iou": 0.8, "stability_score": 0.94},
]


def check_sam(proposals) -> None:
    """By stability x size, the part last; predicted overlaps of more than 1 are 1."""
    assert masks_of(proposals) == [WHOLE.tolist(), OTHER.tolist(), PART.tolist()]
    assert proposals.scores.tolist() == pytest.approx([0.8, 0.9, 1])


def test_a_list_of_segment_anything(tmp_path):
    check_sam(read(put(tmp_path, SAM, "one.json"), tmp_path))
    for name in NAMES:
        put(tmp_path, SAM, f"sam/{Path(name).stem}.json")
    check_sam(read(tmp_path / "sam", tmp_path, NAMES[1], partial=False))


def test_a_file_of_segment_anythings_data(tmp_path):
    image = {"image_id": 3, "file_name": "two.jpg", "height": SIZE[0], "width": SIZE[1]}
    path = put(tmp_path, {"image": image, "annotations": SAM}, "sa_3.json")
    check_sam(read(path, tmp_path, NAMES[1]))


@pytest.mark.parametrize("form", ["arrays", "run lengths"])
def test_a_pickled_list_of_segment_anything(tmp_path, form):
    arrays = [np.asarray(m, bool) for m in (PART, OTHER, WHOLE)]
    kept = [{**r, "bbox": [1, 2, 3, 4], "point_coords": [[1.0, 2.0]]} for r in SAM]
    if form == "arrays":
        kept = [{**r, "segmentation": m} for r, m in zip(kept, arrays, strict=True)]
        kept = [{**r, "stability_score": np.float32(r["stability_score"])} for r in kept]
    (tmp_path / "one.pkl").write_bytes(pickle.dumps(kept))
    check_sam(read(tmp_path / "one.pkl", tmp_path))


def test_live_records_are_taken_as_those_of_a_file():
    records = [{**r, "segmentation": m > 0} for r, m in zip(SAM, (PART, OTHER, WHOLE), strict=True)]
    check_sam(from_records(records, SIZE))
    check_sam(from_records(SAM, SIZE))
    assert from_records([], SIZE).members.shape == (0, 1)
    with pytest.raises(InputError, match=r"the mask generator, result 1: the mask is \[3, 3\]"):
        from_records([{"segmentation": np.ones((3, 3))}], SIZE)


def test_segment_anything_3(tmp_path):
    content = {
        "original_image_path": "photos/one.jpg",
        "orig_img_h": SIZE[0],
        "orig_img_w": SIZE[1],
        "pred_boxes": [[0.1, 0.1, 0.2, 0.2]] * 2,
        "pred_masks": [coded(PART)["counts"], coded(OTHER)["counts"]],
        "pred_scores": [0.5, 0.75],
    }
    found = read(put(tmp_path, content), tmp_path)
    assert masks_of(found) == [OTHER.tolist(), PART.tolist()]
    assert found.scores.tolist() == [0.75, 0.5]
    with pytest.raises(InputError, match="2 pred_masks but 1 pred_scores"):
        read(put(tmp_path, {**content, "pred_scores": [1]}), tmp_path)


def folder_of_pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    rows = ["id,area,bbox_x0,predicted_iou,stability_score"]
    for k, (record, mask) in enumerate(zip(SAM, (PART, OTHER, WHOLE), strict=True)):
        Image.fromarray(mask * 255).save(folder / f"{k}.png")
        rows.append(f"{k},{mask.sum()},0,{record['predicted_iou']},{record['stability_score']}")
    (folder / "metadata.csv").write_text("\n".join(rows))


def test_folders_of_pictures(tmp_path):
    for name in NAMES:
        folder_of_pictures(tmp_path / "sam" / Path(name).stem)
    check_sam(read(tmp_path / "sam", tmp_path, NAMES[1], partial=False))
    check_sam(read(tmp_path / "sam" / "one", tmp_path))
    (tmp_path / "sam/one/1.png").unlink()
    with pytest.raises(InputError, match=r"metadata\.csv, line 3: no picture .*1\.png; add it"):
        read(tmp_path / "sam", tmp_path)
    (tmp_path / "sam/one/metadata.csv").unlink()
    with pytest.raises(InputError, match=r"pictures without metadata\.csv; add it"):
        read(tmp_path / "sam/one", tmp_path)


def test_entities(tmp_path):
    visible = np.full(SIZE, 255, np.uint8)
    visible[WHOLE > 0], visible[PART > 0] = 0, 2
    scores = np.float32([0.5, 0.9, 0.75])  # the second is hidden
    np.savez(tmp_path / "one.npz", ori_scores=scores, scores=scores, mask_id=visible)
    found = read(tmp_path / "one.npz", tmp_path)
    assert masks_of(found) == [PART.tolist(), (WHOLE - PART).tolist()]
    assert found.scores.tolist() == [0.75, 0.5]
    entities = np.stack([WHOLE + PART, np.full(SIZE, 7, np.uint8)])
    np.savez(tmp_path / "two.npz", map=entities, bounding_box=np.zeros((2, 7)))
    found = read(tmp_path / "two.npz", tmp_path, NAMES[1])
    assert masks_of(found) == [(WHOLE - PART).tolist(), PART.tolist()], "the larger first"
    np.savez(tmp_path / "one.npz", other=scores)
    with pytest.raises(InputError, match=r"one\.npz is no known.*holds other"):
        read(tmp_path / "one.npz", tmp_path)
    np.savez(tmp_path / "one.npz", map=np.array([{}]))
    with pytest.raises(InputError, match="no npz of plain arrays"):
        read(tmp_path / "one.npz", tmp_path)


@pytest.mark.parametrize("sized", [True, False])
def test_instances_of_many_images(tmp_path, sized):
    """As CutLER's: images by name, ids of its own, polygons among run lengths, scores of some."""
    annotations = [
        {"id": 1, "image_id": 2, "segmentation": coded(PART), "iscrowd": 0},
        {"id": 2, "image_id": 2, "segmentation": POLYGON, "score": 0.5, "bbox": [9, 9, 9, 9]},
        {"id": 3, "image_id": 2},  # a tag
    ]
    content = {"images": images_of(sized), "annotations": annotations}
    path = put(tmp_path, content)
    found = read(path, tmp_path, NAMES[1], partial=False)
    drawn = rle.decode(rle.merge(rle.frPyObjects(POLYGON, *SIZE)))
    assert masks_of(found) == [PART.tolist(), drawn.tolist()]
    assert found.scores.tolist() == [1, 0.5]
    none = ProposalFile(tmp_path / "out.sqlite").read(NAMES[0], SIZE, segments=True)
    assert none.members.shape == (0, 1), "an image without masks is none of boxes alone"


def test_what_label_writes_comes_back(tmp_path):
    masks = [coded(WHOLE), coded(OTHER), coded(rectangle(0, 0, 0, 0))]
    boxes = torch.tensor([[2.0, 2, 14, 18], [16, 4, 28, 12], [0, 0, 5, 5]])
    scores, labels = torch.tensor([0.25, 0.75, 0.5]), torch.zeros(3, dtype=torch.long)
    prediction = Prediction(8, SIZE, boxes, scores, labels, masks)
    made = index()
    annotations = {8: to_annotations(prediction, made.categories, "PDSL trained from tags, x", 0.5)}
    write_coco(tmp_path / "pseudo.json", made._replace(annotations=annotations))
    found = read(tmp_path / "pseudo.json", tmp_path, NAMES[1], partial=False)
    assert masks_of(found) == [OTHER.tolist(), WHOLE.tolist()]
    assert found.scores.tolist() == [0.75, 0.25]


@pytest.mark.parametrize("form", ["results", "instances"])
def test_boxes_alone_are_boxes(tmp_path, form):
    records = [
        {"image_id": 7 if form == "results" else 1, "category_id": 1, **one}
        for one in ({"bbox": [1, 2, 40, 5], "score": 0.5}, {"bbox": [0.5, 1, 2, 3], "score": 0.75})
    ]
    content = records if form == "results" else {"images": images_of(), "annotations": records}
    found = read(put(tmp_path, content), tmp_path)
    assert found.labels is None
    assert found.boxes.tolist() == [[0.5, 1, 2.5, 4], [1, 2, 30, 7]]
    assert found.scores.tolist() == [0.75, 0.5]
    tall = [{"image_id": 7, "bbox": [1, 2, 5, 40]}]
    assert read(put(tmp_path, tall), tmp_path).boxes.tolist() == [[1, 2, 6, 20]], "axes are sure"


def test_boxes_beside_masks_are_left_out_and_counted(tmp_path, capsys):
    records = [{"image_id": 7, "segmentation": coded(PART)}, {"image_id": 7, "bbox": [1, 1, 9, 9]}]
    assert masks_of(read(put(tmp_path, records), tmp_path)) == [PART.tolist()]
    assert "p.json: 1 boxes without masks left out" in capsys.readouterr().err


def test_results_by_file_name(tmp_path):
    records = [{"image_id": "two", "segmentation": coded(PART), "score": 3.0}]
    found = read(put(tmp_path, records), tmp_path, NAMES[1])
    assert found.scores.tolist() == pytest.approx([1 / (1 + np.exp(-3))])


IMAGE = images_of()[0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"masks": [], "boxes": []}, r"p\.json is no known.*it holds masks, boxes; give"),
        ("text", "it holds a json str"),
        ([5], r"p\.json, result 1 is 5; expected an object"),
        ([{"mask": 1}], r"p\.json, result 1 has no segmentation and no bbox"),
        ([{"image_id": 1}], r"result 1 \(image 1\) has no segmentation and no bbox"),
        ([{"image_id": 1, "bbox": [1, 2]}], r"result 1 \(image 1\): bbox is \[1.0, 2.0\]; give"),
        ([{"image_id": 1, "segmentation": [1, 2, 3, 4]}], r"segmentation\[0\] is 1; expected a li"),
        ([{"image_id": 1, "segmentation": [[True, False]]}], r"segmentation\[0\]\[0\] is True"),
        ([{"image_id": 1, "segmentation": "m.png"}], "segmentation is 'm.png'; expected"),
        (
            [{"image_id": 1, "bbox": [0, 0, 1, 1]}, {"bbox": [0, 0, 1, 1]}],
            "result 2 has no image_id",
        ),
        ([{"image_id": 1, "bbox": [0, 0, 1, 1], "score": "x"}], "score is 'x'; expected a number"),
        (
            [{"image_id": 1, "bbox": [0, 0, 1, 1], "score": float("nan")}],
            "score is nan; give a number",
        ),
        (
            {"images": [IMAGE], "annotations": [{"id": 4, "image_id": 9, "bbox": [0, 0, 1, 1]}]},
            r"annotation 4 of image 9: that image is not under \"images\"; add it",
        ),
        (
            {"images": [{"id": 1}], "annotations": []},
            r"images\[0\] has no file_name",
        ),
        (
            {"images": [IMAGE], "annotations": [{"image_id": 1, "segments_info": []}]},
            "a panoptic file",
        ),
        (
            {"images": [{**IMAGE, "width": 31}], "annotations": [{"image_id": 1, "bbox": [0] * 4}]},
            "one.jpg is 30 x 20 pixels, its proposals 31 x 20: made for other images",
        ),
        (
            [{"image_id": 7, "segmentation": {"size": [3, 3], "counts": [9]}}],
            r"result 1 \(image 7\): the mask is \[3, 3\], but its image is \[20, 30\]",
        ),
        (
            [{"image_id": 7, "segmentation": [[0, 0, 1, 1, 2]]}],
            r"result 1 \(image 7\): a polygon has 5 coordinates; give pairs",
        ),
    ],
)
def test_other_forms_are_told_in_one_line(tmp_path, content, says):
    with pytest.raises(InputError, match=says) as error:
        read(put(tmp_path, content), tmp_path)
    assert "\n" not in str(error.value)
    assert "fetch" not in str(error.value)


def test_images_of_one_name_are_told_apart_or_refused(tmp_path):
    many = index()
    twins = [{**many.images[0], "id": k, "file_name": f"{f}/1.jpg"} for k, f in enumerate("ab", 1)]
    many = many._replace(images=twins)
    listed = [
        {**image, "id": 9 - image["id"], "file_name": f"x/{image['file_name']}"} for image in twins
    ]
    records = [{"image_id": 7, "bbox": [0, 0, 9, 9]}, {"image_id": 8, "bbox": [1, 1, 3, 3]}]
    path = put(tmp_path, {"images": listed, "annotations": records})
    file = ProposalFile(convert(path, many, tmp_path / "out.sqlite"))
    assert file.read("b/1.jpg", SIZE).boxes.tolist() == [[0, 0, 9, 9]]
    assert file.read("a/1.jpg", SIZE).boxes.tolist() == [[1, 1, 4, 4]]
    path = put(tmp_path, [{"bbox": [0, 0, 9, 9]}], "folder/1.json")
    twins = [{**image, "id": image["id"] + 10} for image in twins]
    with pytest.raises(InputError, match=r"'1' may be those of a/1\.jpg or of b/1\.jpg; name"):
        convert(path.parent, many._replace(images=twins), tmp_path / "two.sqlite")


def test_an_image_in_two_files_of_a_folder_is_refused(tmp_path):
    for name in ("x.json", "y.json"):
        put(tmp_path, [{"image_id": 7, "bbox": [0, 0, 9, 9]}], f"folder/{name}")
    with pytest.raises(InputError, match=r"has proposals of a/one\.jpg in two places; .*--from A"):
        read(tmp_path / "folder", tmp_path)


FORMS = [
    SAM,
    {"image": {"image_id": 7}, "annotations": SAM},
    {
        "images": images_of(),
        "annotations": [{**r, "id": k, "image_id": 1} for k, r in enumerate(SAM)],
    },
    [{"image_id": 7, "segmentation": POLYGON, "score": 0.5}, {"image_id": 8, "bbox": [1, 2, 3, 4]}],
    {"orig_img_h": 20, "orig_img_w": 30, "pred_masks": [coded(PART)["counts"]], "pred_scores": [1]},
]
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.floats(-5, 40), max_size=6),
    st.just({}),
    st.just([[1, 2]]),
    st.just(2**70),
)


def places(content: Any) -> list[tuple[Any, ...]]:
    """The keys that lead to each value inside a json."""
    keys = range(len(content)) if isinstance(content, list) else content
    found = [] if not isinstance(content, list | dict) else list(keys)
    return [(), *((key, *rest) for key in found for rest in places(content[key]))]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(form=st.sampled_from(FORMS), data=st.data())
def test_damaged_records_are_read_or_refused(tmp_path, form, data):
    content = {"whole": deepcopy(form)}
    for _ in range(data.draw(st.integers(0, 2))):
        *path, last = data.draw(st.sampled_from([p for p in places(content) if p]))
        inside = content
        for key in path:
            inside = inside[key]
        if isinstance(inside, dict) and data.draw(st.booleans()) and last != "whole":
            del inside[last]
        else:
            inside[last] = deepcopy(data.draw(ODD))
    try:
        found = read(put(tmp_path, content["whole"], "one.json"), tmp_path)
    except InputError:
        return
    assert found.boxes.isfinite().all()
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert (found.boxes <= torch.tensor([30, 20, 30, 20])).all()
