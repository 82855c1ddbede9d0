"""A zip of photographs as one of small square ones, for experiments: what a model's evaluation makes of them.

    python -m pipeline.experiments.shrink clothing.zip clothing-112.zip 112

Images of one size that is no larger than the model's can be held on a GPU (pipeline.data.loader.InMemory).
"""

import io
import sys
import zipfile
from pathlib import Path

from PIL import Image, ImageOps

QUALITY = 90
VAL = {"val", "validation", "test"}


def shrink(source: Path, target: Path, size: int) -> int:
    """Write `target` with every image of `source` at size x size; validation/ and test/ become val/. Returns how many.

    The shorter side is resized, bicubic and antialiased, and the middle cut out. Images lie in SPLIT/CLASS/ in both.
    """
    count = 0
    with zipfile.ZipFile(source) as photographs, zipfile.ZipFile(target, "w") as small:
        for name in sorted(photographs.namelist()):
            if not name.lower().endswith(".jpg"):
                continue
            split, label, file = name.split("/")
            image = ImageOps.exif_transpose(Image.open(io.BytesIO(photographs.read(name)))).convert("RGB")
            square = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
            data = io.BytesIO()
            square.save(data, "JPEG", quality=QUALITY, optimize=True)
            entry = zipfile.ZipInfo(f"{'val' if split in VAL else split}/{label}/{file}")  # without the time of day
            small.writestr(entry, data.getvalue())
            count += 1
    return count


if __name__ == "__main__":
    print(f"{shrink(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))} images")
