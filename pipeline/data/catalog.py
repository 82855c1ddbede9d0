"""The datasets known by name: how large they are, what their owners allow, and which archives they consist of.

Sizes, counts and checksums are the owners' own, as published on `home`; torchvision 0.29 has the same for CIFAR,
iNaturalist and ImageNet. Sizes of archives are rounded as there, except CIFAR's and ImageNet's images, which are exact;
unpacked sizes are estimates (images hardly compress).
"""

import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One tar file of a dataset; `.tar` members of it are tar files too, each with a folder of its own (ImageNet)."""

    name: str
    """of the file"""
    url: str | None
    """None: the owner gives it only to people who have registered"""
    bytes: int
    unpacked_bytes: int
    checksum: str | None
    """md5:... or sha256:...; None: the owner publishes none"""
    gives: str
    """the one file or folder that it becomes in the dataset's folder"""


@dataclass(frozen=True, kw_only=True)
class Known:
    """One dataset."""

    name: str
    """as in DATASET=name"""
    title: str
    classes: int
    train_images: int
    val_images: int
    licence: str
    """what its owner says about its use"""
    home: str
    """its owner's page"""
    archives: tuple[Archive, ...]
    manual: str = "Download, in a browser or on a machine that has a network:"
    """how a person gets the archives without `make data`"""

    @property
    def download_bytes(self) -> int:
        return sum(archive.bytes for archive in self.archives)

    @property
    def unpacked_bytes(self) -> int:
        return sum(archive.unpacked_bytes for archive in self.archives)

    @property
    def folder(self) -> Path:
        """Where it lies unless DATA=dir says otherwise."""
        return Path("data") / self.name

    def command(self, folder: Path) -> str:
        """What gets it into `folder`."""
        return f"make data DATASET={self.name}" + (f" DATA={shlex.quote(str(folder))}" if folder != self.folder else "")


def _cifar(classes: int, bytes: int, checksum: str, gives: str) -> Known:
    name = f"cifar-{classes}-python.tar.gz"
    url = f"https://www.cs.toronto.edu/~kriz/{name}"
    return Known(
        name=f"cifar{classes}",
        title=f"CIFAR-{classes}",
        classes=classes,
        train_images=50_000,
        val_images=10_000,
        licence="none stated; the owner asks to cite the technical report",
        home="https://www.cs.toronto.edu/~kriz/cifar.html",
        archives=(
            Archive(name=name, url=url, bytes=bytes, unpacked_bytes=187_000_000, checksum=checksum, gives=gives),
        ),
    )


FOODX = "https://food-x.s3.amazonaws.com"
INAT = "https://ml-inat-competition-datasets.s3.amazonaws.com/2019"

KNOWN: dict[str, Known] = {
    known.name: known
    for known in (
        _cifar(10, 170_498_071, "md5:c58f30108f718f92721af3b95e74349a", "cifar-10-batches-py"),
        _cifar(100, 169_001_437, "md5:eb9058c3a382ffc7106e4002c42a8d85", "cifar-100-python"),
        Known(
            name="ifood",
            title="iFood 2019 (FoodX-251)",
            classes=251,
            # As the paper (arXiv 1907.06167) counts them. The owner's page also speaks of 120,216 and 12,170.
            train_images=118_475,
            val_images=11_994,
            licence="non-commercial research and education only; no redistribution",
            home="https://github.com/karansikka1/iFood_2019",
            archives=(
                Archive(
                    name="annot.tar",
                    url=f"{FOODX}/annot.tar",
                    bytes=3_000_000,
                    unpacked_bytes=3_000_000,
                    checksum="md5:0c632c543ceed0e70f0eb2db58eda3ab",
                    gives="annot",
                ),
                Archive(
                    name="val.tar",
                    url=f"{FOODX}/val.tar",
                    bytes=231_000_000,
                    unpacked_bytes=231_000_000,
                    checksum="md5:fa9a4c1eb929835a0fe68734f4868d3b",
                    gives="val_set",
                ),
                Archive(
                    name="train.tar",
                    url=f"{FOODX}/train.tar",
                    bytes=2_300_000_000,
                    unpacked_bytes=2_300_000_000,
                    checksum="md5:8e56440e365ee852dcb0953a9307e27f",
                    gives="train_set",
                ),
            ),
        ),
        Known(
            name="inat19",
            title="iNaturalist 2019",
            classes=1_010,
            train_images=265_213,
            val_images=3_030,
            licence="non-commercial research and education only; no redistribution; iNaturalist's terms of service",
            home="https://github.com/visipedia/inat_comp/tree/master/2019",
            archives=(
                Archive(
                    name="categories.json.tar.gz",
                    url=f"{INAT}/categories.json.tar.gz",
                    bytes=50_000,  # not published; 1,010 records
                    unpacked_bytes=500_000,
                    checksum=None,
                    gives="categories.json",
                ),
                Archive(
                    name="val2019.json.tar.gz",
                    url=f"{INAT}/val2019.json.tar.gz",
                    bytes=156_000,
                    unpacked_bytes=1_000_000,
                    checksum="md5:5cc5509b0fe495f1c8c1362612448497",
                    gives="val2019.json",
                ),
                Archive(
                    name="train2019.json.tar.gz",
                    url=f"{INAT}/train2019.json.tar.gz",
                    bytes=13_000_000,
                    unpacked_bytes=60_000_000,
                    checksum="md5:b06a6683537867c0d5c7a45f407a306d",
                    gives="train2019.json",
                ),
                Archive(
                    name="train_val2019.tar.gz",
                    url=f"{INAT}/train_val2019.tar.gz",
                    bytes=74_000_000_000,
                    unpacked_bytes=75_000_000_000,
                    checksum="md5:c60a6e2962c9b8ccbd458d12c8582644",
                    gives="train_val2019",
                ),
            ),
        ),
        Known(
            name="imagenet",
            title="ImageNet (ILSVRC 2012)",
            classes=1_000,
            train_images=1_281_167,
            val_images=50_000,
            licence="non-commercial research and education only; registration",
            home="https://image-net.org/challenges/LSVRC/2012/2012-downloads.php",
            archives=(
                Archive(
                    name="ILSVRC2012_devkit_t12.tar.gz",
                    url=None,
                    bytes=2_500_000,
                    unpacked_bytes=10_000_000,
                    checksum="md5:fa75699e90414af021442c21a62c3abf",
                    gives="ILSVRC2012_devkit_t12",
                ),
                Archive(
                    name="ILSVRC2012_img_val.tar",
                    url=None,
                    bytes=6_744_924_160,
                    unpacked_bytes=6_744_924_160,
                    checksum="md5:29b22e2961454d5413ddabcf34fc5622",
                    gives="val",
                ),
                Archive(
                    name="ILSVRC2012_img_train.tar",
                    url=None,
                    bytes=147_897_477_120,
                    unpacked_bytes=147_897_477_120,
                    checksum="md5:1d675b47d978889d74fa0da5fadfb00e",
                    gives="train",
                ),
            ),
            manual=(
                "Register at image-net.org, ask for access, and download the development kit (task 1 & 2), "
                "the training images (task 1 & 2) and the validation images (all tasks):"
            ),
        ),
    )
}
