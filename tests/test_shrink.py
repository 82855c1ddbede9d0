"""Photographs made small for experiments."""

import io
import zipfile

import numpy as np
from PIL import Image

from pipeline.experiments.shrink import shrink


def test_every_photograph_becomes_a_square_and_all_that_is_not_for_training_is_validation(tmp_path):
    def photograph(height: int, width: int) -> bytes:
        data = io.BytesIO()
        ramp = np.broadcast_to(np.linspace(0, 255, width).astype(np.uint8)[None, :, None], (height, width, 3))
        Image.fromarray(ramp).save(data, "JPEG")
        return data.getvalue()

    with zipfile.ZipFile(tmp_path / "large.zip", "w") as archive:
        for name, size in (("train/hat/a", (300, 224)), ("validation/hat/b", (224, 448)), ("test/hat/c", (90, 60))):
            archive.writestr(f"{name}.jpg", photograph(*size))
        archive.writestr("README.md", "not a photograph")
    assert shrink(tmp_path / "large.zip", tmp_path / "small.zip", 112) == 3
    with zipfile.ZipFile(tmp_path / "small.zip") as archive:
        assert sorted(archive.namelist()) == ["train/hat/a.jpg", "val/hat/b.jpg", "val/hat/c.jpg"]
        images = {name[-5]: np.array(Image.open(io.BytesIO(archive.read(name)))) for name in archive.namelist()}
    assert {image.shape for image in images.values()} == {(112, 112, 3)}
    # the middle half of the wide one: its ramp runs from a quarter to three quarters
    assert abs(images["b"][:, 0].mean() - 64) < 4 and abs(images["b"][:, -1].mean() - 191) < 4
