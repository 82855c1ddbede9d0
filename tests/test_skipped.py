"""An unreadable image that is allowed is told, counted and named in the report; one that is not stops the run early."""

import dataclasses
import json
import shutil

import pytest
from conftest import tiny_config

from pipeline import stages
from pipeline.context import Context
from pipeline.runs import Run


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
