"""`make bench-loader` measures what it says, on pictures that cost what photographs cost."""

import numpy as np
import pytest
from PIL import Image

from pipeline.experiments import bench_loader
from pipeline.report.results import write_results


def test_pictures_are_like_photographs_and_the_same_every_time(tmp_path):
    first, second = (bench_loader.make_pictures(tmp_path / name, bench_loader.PHOTOS, 6) for name in ("a", "b"))
    for member, (height, width) in zip(first.train.images.members, first.train.images.sizes, strict=True):
        file = tmp_path / "a" / member
        assert 40_000 < file.stat().st_size < 65_000
        assert file.read_bytes() == (tmp_path / "b" / member).read_bytes()
        assert Image.open(file).size == (width, height) == (500, 400)
    assert len({picture.pixels().tobytes() for picture in second.train.images}) == 6
    assert min(picture.pixels().std() for picture in first.train.images) > 20


def test_there_is_a_row_per_loader_and_ratios_to_timms(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_loader, "BATCH", 4)
    rows = bench_loader.bench_loader(quick=True, workers=1, say=lambda _: None)
    photos = ["timm", "decoding alone", "ours", "ours, every image 3 times", "ours, from tars"]
    small = ["timm", "decoding alone", "ours", "in memory"]
    assert [row["loader"] for row in rows] == photos + small
    assert [row["workers"] for row in rows] == [1] * 8 + [0]
    for row in rows:
        assert {"loader", "workers", "images_per_s", "ratio", "ratio_spread"} <= row.keys()
        assert row["images_per_s"] > 0
        timms = next(other for other in rows if (other["loader"], other["input"]) == ("timm", row["input"]))
        assert row["ratio"] == pytest.approx(row["images_per_s"] / timms["images_per_s"])
        assert row["ratio_spread"][0] <= row["ratio_paired"] <= row["ratio_spread"][1]
    write_results(tmp_path / "docs" / "r.json", "make bench-loader", rows)


def test_tars_hold_the_same_pictures(tmp_path):
    dataset = bench_loader.make_pictures(tmp_path, bench_loader.SMALL, 6)
    packed = bench_loader.in_tars(dataset, tmp_path / "tars")
    for one, other in zip(dataset.train.images, packed.train.images, strict=True):
        assert (one.pixels() == other.pixels()).all()


def test_there_is_a_worker_at_least():
    with pytest.raises(ValueError, match="WORKERS=0 must be 1 or more"):
        bench_loader.bench_loader(quick=True, workers=0, say=lambda _: None)


def test_textures_have_the_spectrum_they_should():
    texture = bench_loader._texture(np.random.default_rng(0), 1.5, side=256)[..., 0]
    power = abs(np.fft.fft2(texture)) ** 2
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256))
    bands = [power[(frequency > low) & (frequency <= 2 * low)].mean() for low in (0.02, 0.08, 0.2)]
    slopes = np.diff(np.log(bands)) / np.diff(np.log([0.02, 0.08, 0.2]))
    np.testing.assert_allclose(slopes, -3, atol=0.3)
