"""The cells of a comparison: which methods and variants, at which sparsities, with which seeds."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.methods import GATED, METHODS, RELEASED, VARIANTS, variant_settings

REFERENCE = "reference"
"""the variant of DAP with the paper's probes"""
TAUGHT = ("distill", "logits")
"""variants of every method that learn from the dense model of its seed too: from all of it, from its logits alone"""
UNROTATED = "unrotated"
"""the variant of DAP and its controls that prunes attention heads in the basis they come with"""
COMPENSATE = "compensate"
"""the variant of one-shot methods whose small model is fitted to the whole one before it is trained"""
KNOWN = (
    *METHODS,
    *(f"{method}:{variant}" for method, variants in VARIANTS.items() for variant in variants),
    *(f"{method}:released" for method in RELEASED),
    *(f"{method}:{variant}" for variant in TAUGHT for method in METHODS if method != "dense"),
    *(f"{method}:{UNROTATED}" for method in GATED),
    *(f"{name}:{COMPENSATE}" for name, method in METHODS.items() if method.one_shot),
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
    def parts(self) -> list[str]:
        """What its variant is made of."""
        return self.variant.split("+") if self.variant else []

    @property
    def is_taught(self) -> bool:
        """Whether its seed's dense model has to be there first."""
        return any(part in TAUGHT for part in self.parts)

    @property
    def teacher(self) -> str:
        """The folder of its seed's dense model."""
        return Cell("dense", None, 0.0, self.seed).name


def cells(
    methods: Sequence[str], sparsities: Sequence[float], seeds: Sequence[int], once: Sequence[str] = ()
) -> list[Cell]:
    """The queue: seed by seed, in each first the dense model that the others are held against.

    methods: METHOD or METHOD:VARIANT, variants joined by +, for every seed;  once: the same, for the first seed alone,
    at the end
    Raises ValueError for one that is not known.
    """
    queue = []
    for seed, specs in [*((seed, methods) for seed in seeds), (seeds[0], once)]:
        if specs is not once:
            queue.append(Cell("dense", None, 0.0, seed))
        for sparsity, spec in itertools.product(sparsities, specs):
            method, _, variant = spec.partition(":")
            parts = [spec] if spec in KNOWN else [f"{method}:{part}" for part in variant.split("+")]
            if any(part not in KNOWN and variant_settings(*part.split(":")) is None for part in parts):
                raise ValueError(f"METHODS: {spec!r} is unknown. Known: {', '.join(KNOWN)}, dap:benefit_scale=5 ...")
            if method != "dense":
                queue.append(Cell(method, variant or None, sparsity, seed))
    return queue
