"""A profile that nothing has measured, for the tests of those who read one."""

from typing import Any

from targets.devices.measure import describe
from targets.profile import Curve, Kind, Profile, Shape

MICRO = Shape(dim=96, heads=3, head_width=32, hidden=384, tokens=65, image_size=64)


def synthetic(shape: Shape = MICRO, scale: float = 1.0, **changes: Any) -> Profile:
    """Of this machine as host, with numbers like those of a micro DeiT in int8. scale: of all times."""
    dense_ms: dict[Kind, tuple[float, float]] = {  # of the dense block, and the share of it that is fixed
        "attn": (0.07, 0.6),
        "mlp": (0.045, 0.15),
        "attn_last": (0.01, 0.3),
        "mlp_last": (0.002, 0.2),
    }
    curves: dict[Kind, Curve] = {}
    for kind, (ms, fixed) in dense_ms.items():
        dense = shape.dense_width(kind)
        widths = sorted({3 if kind.startswith("attn") else 9, dense // 4, dense // 2, dense})
        raw_ms = [scale * ms * (fixed + (1 - fixed) * width / dense) for width in widths]
        curves[kind] = Curve.measured(widths, raw_ms, [0.05 * value for value in raw_ms])
    values: dict[str, Any] = dict(
        target="host",
        device=describe(),
        format="tflite",
        precision="int8-dynamic",
        threads=1,
        runtime="ai-edge-litert 2.3.0",
        model="deit_micro_patch8_64",
        shape=shape,
        measured="2026-11-25",
        base_ms=0.06 * scale,
        base_spread_ms=0.001,
        curves=curves,
    )
    return Profile(**{**values, **changes})
