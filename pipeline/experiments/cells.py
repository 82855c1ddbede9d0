"""The cells of a comparison: which methods and variants, at which sparsities, with which seeds."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.methods import METHODS, RELEASED, VARIANTS, variant_settings

REFERENCE = "reference"
"""the variant of DAP with the paper's probes"""
DISTILL = "distill"
"""the variant of every method that learns from the dense model of its seed too"""
KNOWN = (
    *METHODS,
    *(f"{method}:{variant}" for method, variants in VARIANTS.items() for variant in variants),
    *(f"{method}:released" for method in RELEASED),
    *(f"{method}:{DISTILL}" for method in METHODS if method != "dense"),
)


@dataclass(frozen=True)
class Cell:
    """One run of the comparison."""

    method: str
    variant: str | None
    sparsity: float
    seed: int

    @property
    def name(self) -> str:
        """Its folder."""
        variant = f"-{self.variant}" if self.variant else ""
        sparsity = "" if self.method == "dense" else f"-{self.sparsity:g}"
        return f"{self.method}{variant}{sparsity}-seed{self.seed}"

    @property
    def teacher(self) -> str:
        """The folder of its seed's dense model."""
        return Cell("dense", None, 0.0, self.seed).name


def cells(
    methods: Sequence[str], sparsities: Sequence[float], seeds: Sequence[int], once: Sequence[str] = ()
) -> list[Cell]:
    """The queue: seed by seed, in each first the dense model that the others are held against.

    methods: METHOD or METHOD:VARIANT, for every seed;  once: the same, for the first seed alone, at the end
    Raises ValueError for one that is not known.
    """
    queue = []
    for seed, specs in [*((seed, methods) for seed in seeds), (seeds[0], once)]:
        if specs is not once:
            queue.append(Cell("dense", None, 0.0, seed))
        for sparsity, spec in itertools.product(sparsities, specs):
            method, _, variant = spec.partition(":")
            if spec not in KNOWN and variant_settings(method, variant) is None:
                raise ValueError(f"METHODS: {spec!r} is unknown. Known: {', '.join(KNOWN)}, dap:benefit_scale=5 ...")
            if method != "dense":
                queue.append(Cell(method, variant or None, sparsity, seed))
    return queue
