"""What a report says of its data: the split that accuracy is of, and what is left out.

An unreadable image that is allowed is told, counted and named in the report; one that is not stops the run early."""

import dataclasses
import json
import shutil

import pytest
from conftest import make_image_folder, tiny_config
from PIL import Image

from dap import load_compact
from pipeline import stages
from pipeline.context import Context
from pipeline.runs import Run
from pipeline.train.evaluate import predictor


def test_accuracy_is_reported_of_test(image_folder, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(image_folder, photos)
    make_image_folder(tmp_path / "more", train=4, val=0)
    for image in (tmp_path / "more").rglob("*.png"):  # lighter: no image of train
        Image.open(image).point(lambda value: value // 2 + 120).save(image)
    (tmp_path / "more" / "train").rename(photos / "test")
    context = Context(Run.create(tmp_path / "run", tiny_config(photos)), lambda *_: None, lambda line: None)
    stages.run_training(context, only="prepare")
    model = load_compact(context.checkpoints / "prepared")
    [(images, labels)] = context.reported_batches
    assert len(labels) == 12 and len(context.dataset.val.labels) == 18
    predicted = predictor(model, context.view)(images).argmax(-1)
    assert context.predictions(model).top1 == pytest.approx(100 * float((predicted == labels).float().mean()))
    stages.report(context)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["top1_split"], report["images_test"]) == ("test", 12)
    assert report["data"]["splits"]["test"]["source"] == "test/"
    html = (tmp_path / "run" / "report.html").read_text()
    assert "The checks are made on val" in html and "Top-1 accuracy on test" in html


def test_a_skipped_image_is_named_everywhere(image_folder, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(image_folder, photos)
    (photos / "train" / "along" / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    config = tiny_config(photos)
    said: list[str] = []
    with pytest.raises(ValueError, match=r"torn\.jpg"):
        stages.run_training(Context(Run.create(tmp_path / "strict", config), lambda *_: None, said.append))
    config = dataclasses.replace(config, max_bad_share=0.05)
    context = Context(Run.create(tmp_path / "lenient", config), lambda *_: None, said.append)
    stages.run_training(context, only="prepare")
    assert any("left out: train/along/torn.jpg" in line for line in said)
    stages.report(context)
    report = json.loads((tmp_path / "lenient" / "report.json").read_text())
    assert [file["path"] for file in report["skipped_images"]] == ["train/along/torn.jpg"]
    assert "1 image left out" in (html := (tmp_path / "lenient" / "report.html").read_text())
    assert "train/along/torn.jpg" in html
