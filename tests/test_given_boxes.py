"""The verbs on a method with several trained stages, one of which segments given boxes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from pycocotools import mask as rle

import wsis
from wsis import fit, label, predict
from wsis import test as testing
from wsis.data.index import read_coco
from wsis.datasets.shapes import Shapes
from wsis.models.boxcaseg import BoxCaseg
from wsis.parts.mask_rcnn import MaskRCNN

pytestmark = pytest.mark.slow

SEGMENTOR = {"features": 16, "hidden": 16, "mask_width": 8, "steps": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("given-boxes")
    words = [
        "--model",
        "boxcaseg",
        "--data.root",
        str(place / "shapes"),
        "--data.train",
        "6",
        "--data.val",
        "3",
    ]
    words += [
        "--data.salient",
        "6",
        "--data.loading.workers",
        "0",
        "--trainer.accelerator",
        "cpu",
        "--trainer.max_steps",
        "2",
    ]
    words += ["--model.min_agreement", "0.8", "--model.segmentor", json.dumps(SEGMENTOR)]
    fit.main([*words, "--run_dir", str(place / "run")])
    return place / "run"


def shapes(run: Path) -> Shapes:
    return Shapes(root=run.parent / "shapes", train=6, val=3, proposals="none")


def refused(verb, argv, capsys) -> str:
    with pytest.raises(SystemExit) as end:
        verb.main([str(word) for word in argv])
    assert end.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_run_is_its_last_trained_stage_or_the_one_asked_for(run, capsys):
    segmentor = wsis.load(run).model
    assert isinstance(segmentor, MaskRCNN)
    assert segmentor.hparams["backbone"]["name"] == "test_byobnet", (
        "the joint network's, as the setting names none"
    )
    assert isinstance(wsis.load(run, "1-joint").model, BoxCaseg)
    line = refused(testing, ["--run", run, "--stage", "2-proxy-masks"], capsys)
    assert "no trained stage '2-proxy-masks'; it has 1-joint, 3-segmentor" in line


def test_masks_in_given_boxes_are_judged_by_their_overlap(run, capsys):
    metrics = testing.main(["--run", str(run), "--stage", "1-joint", "--accelerator", "cpu"])
    printed = capsys.readouterr().out
    assert "IoU75" in printed
    assert "AP" not in printed
    assert set(metrics.overall) == {"mIoU", "IoU50", "IoU75"}
    trained = json.loads((run / "1-joint/metrics.json").read_text())
    assert metrics.overall["mIoU"] == pytest.approx(trained["val/mIoU"], abs=1e-5)
    assert (run / "test-val-1-joint/report.html").is_file()


def test_labels_of_own_images_are_the_proxy_masks(run, tmp_path):
    label.main(["--run", str(run), "--out", str(tmp_path / "pseudo.json"), "--accelerator", "cpu"])
    made, stage = (
        read_coco(path, Path(), check_images=False)
        for path in (tmp_path / "pseudo.json", run / "2-proxy-masks/labels.json")
    )
    true = shapes(run).index("train").annotations
    assert {image: len(found) for image, found in stage.annotations.items()} == {
        i: len(found) for i, found in true.items()
    }
    for image, found in stage.annotations.items():
        mine = {tuple(a["bbox"]): a for a in made.annotations[image]}
        for theirs in found:
            assert (
                mine[tuple(round(v, 2) for v in theirs["bbox"])]["segmentation"]
                == theirs["segmentation"]
            )
            assert theirs["ignore"] == (theirs["score"] < 0.8 or not theirs["area"])


def other_boxes(run: Path, folder: Path) -> Path:
    """Two images under another name, with boxes of classes that the run does not know."""
    index = shapes(run).index("val")
    (folder / "mine").mkdir(parents=True)
    images, annotations = [], []
    for image in index.images[:2]:
        shutil.copy(index.root / image["file_name"], folder / "mine" / f"x{image['id']}.jpg")
        images.append({**image, "file_name": f"mine/x{image['id']}.jpg"})
        for found in index.annotations[image["id"]]:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": 7,
                    "bbox": found["bbox"],
                }
            )
        annotations.append({**annotations[-1], "id": len(annotations) + 1, "iscrowd": 1})
    path = folder / "boxes.json"
    path.write_text(
        json.dumps(
            {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "gnu"}]}
        )
    )
    return path


def test_boxes_of_any_images_and_classes_are_labelled(run, tmp_path):
    path = other_boxes(run, tmp_path)
    words = [
        "--run",
        run,
        "--out",
        tmp_path / "pseudo.json",
        "--images",
        tmp_path,
        "--labels",
        path,
        "--accelerator",
        "cpu",
    ]
    label.main([str(word) for word in words])
    written = json.loads((tmp_path / "pseudo.json").read_text())
    assert [c["name"] for c in written["categories"]] == ["gnu"]
    given = [a for a in json.loads(path.read_text())["annotations"] if not a.get("iscrowd")]
    ours, theirs = (
        sorted((a["image_id"], *map(round, a["bbox"])) for a in part)
        for part in (written["annotations"], given)
    )
    assert ours == theirs
    for image in {a["image_id"] for a in given}:
        masks = torch.stack(
            [
                torch.from_numpy(rle.decode(a["segmentation"])).bool()
                for a in written["annotations"]
                if a["image_id"] == image
            ]
        )
        assert masks.sum(0).max() <= 1, "the smaller object takes what both cover"


def test_predict_with_boxes_and_without(run, tmp_path, capsys):
    path = other_boxes(run, tmp_path)
    extra = shutil.copy(
        tmp_path / "mine" / next((tmp_path / "mine").iterdir()).name,
        tmp_path / "mine" / "stranger.jpg",
    )
    words = ["--run", str(run), "--workers", "0", "--accelerator", "cpu"]
    file = predict.main(
        [str(tmp_path / "mine"), "--boxes", str(path), "--out", str(tmp_path / "out"), *words]
    )
    assert f"no boxes for {extra}" in capsys.readouterr().err
    found = json.loads(file.read_text())
    given = [a for a in json.loads(path.read_text())["annotations"] if not a.get("iscrowd")]
    assert len(found) == len(given)
    assert all("segmentation" in r and r["category_id"] == 7 for r in found)
    assert len(list((tmp_path / "out/overlays").iterdir())) == 2
    predict.main([str(tmp_path / "mine"), "--out", str(tmp_path / "free"), *words])
    assert len(json.loads((tmp_path / "free/images.json").read_text())["images"]) == 3


def test_boxes_where_they_do_not_belong(run, tmp_path, capsys):
    path = other_boxes(run, tmp_path)
    words = [tmp_path / "mine", "--run", run, "--out", tmp_path / "out"]
    assert "needs --boxes" in refused(predict, [*words, "--stage", "1-joint"], capsys)
    assert "does not take --boxes" in refused(
        predict, [*words, "--stage", "3-segmentor", "--boxes", path], capsys
    )
    content = json.loads(path.read_text())
    content["images"][0]["width"] += 1
    path.write_text(json.dumps(content))
    assert "pixels, but it is" in refused(predict, [*words, "--boxes", path], capsys)
    for image in content["images"]:
        image["file_name"] = "elsewhere.jpg" if image is content["images"][0] else "nowhere.jpg"
    path.write_text(json.dumps(content))
    assert "boxes for none of the images" in refused(predict, [*words, "--boxes", path], capsys)


def test_one_image_from_python(run):
    model, data, *_ = wsis.load(run, "1-joint")
    index = data.index("val")
    boxes = torch.tensor([[10.0, 20, 60, 80], [30, 30, 90, 70]])
    found = wsis.predict(model, index.root / index.images[0]["file_name"], boxes)
    assert torch.equal(found.boxes, boxes)
    assert len(found.masks) == 2
    for mask, (x1, y1, x2, y2) in zip(found.masks, boxes.int().tolist(), strict=True):
        assert rle.area(mask) == rle.decode(mask)[y1:y2, x1:x2].sum()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"steps": 1, "featurse": 3},
            "unknown setting 'model.segmentor.featurse'; did you mean 'features'?",
        ),
        ({"features": 16}, "needs `steps`"),
        (
            {"steps": 1, "augment": {"flop": 1}, "backbone": {"weights": "none"}},
            "'model.segmentor.augment.flop'; did you mean 'flip'?",
        ),
    ],
)
def test_a_wrong_segmentor_is_refused_before_anything_is_trained(tmp_path, settings, told, capsys):
    words = [
        "--model",
        "boxcaseg",
        "--data.root",
        tmp_path / "shapes",
        "--data.train",
        "2",
        "--data.val",
        "1",
    ]
    words += [
        "--data.salient",
        "2",
        "--run_dir",
        tmp_path / "run",
        "--model.segmentor",
        json.dumps(settings),
    ]
    assert told in refused(fit, words, capsys)
    assert not list(tmp_path.glob("run/*/checkpoints"))


def test_what_only_later_stages_need_trains_no_earlier_one_again(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    joint = (tmp_path / "run/1-joint/checkpoints/last.ckpt").stat().st_mtime_ns
    capsys.readouterr()
    fit.main(
        [
            "--config",
            str(run / "config.yaml"),
            "--run_dir",
            str(tmp_path / "run"),
            "--model.min_agreement",
            "0.1",
        ]
    )
    said = capsys.readouterr().out
    assert "stage 1 of 3, joint: done before" in said
    assert "2-proxy-masks: settings or earlier stages have changed" in said
    assert (tmp_path / "run/1-joint/checkpoints/last.ckpt").stat().st_mtime_ns == joint
    annotations = json.loads((tmp_path / "run/2-proxy-masks/labels.json").read_text())[
        "annotations"
    ]
    assert all(a["ignore"] == (a["score"] < 0.1 or not a["area"]) for a in annotations)
    assert wsis.load(tmp_path / "run", "1-joint").model.min_mask_score == 0.1
    capsys.readouterr()
    words = ["--config", str(tmp_path / "run/config.yaml"), "--run_dir", str(tmp_path / "run")]
    fit.main([*words, "--model.segmentor", json.dumps(SEGMENTOR | {"nms": 0.4})])
    said = capsys.readouterr().out
    assert "stage 2 of 3, proxy-masks: done before" in said
    assert "3-segmentor: settings or earlier stages have changed" in said
