"""What keeps a leading dimension of 1 in every tensor of a TFLite file: LiteRT's GPU delegate takes it as the batch.

The converter loses it, in linear layers and products of matrices, where it goes through fewer dimensions and back, and
then takes away what it finds superfluous: (N, D) is left where (1, N, D) was.
"""

from functools import cache

import torch
from torch import Tensor


@cache
def keep_batch() -> None:
    """Make PyTorch's operations TFLite's at once, in this process, where the converter's ways lose the batch."""
    # Imported here as the converter is; it brings torch.ops.tfl with it.
    from litert_torch.fx_infra import decomp

    aten, tfl = torch.ops.aten, torch.ops.tfl

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        y = tfl.batch_matmul(x, weight.t())
        return y if bias is None else y + bias

    def product(x_HMK: Tensor, y_HKN: Tensor) -> Tensor:
        # PyTorch's own reshapes, from four dimensions to three and back, and these cancel
        return tfl.batch_matmul(x_HMK[None], y_HKN[None])[0]

    def mean(x: Tensor, dim: list[int], keepdim: bool = False) -> Tensor:
        return tfl.mean(x, dim, keepdim)

    def gather(x: Tensor, dim: int, index: Tensor) -> Tensor:
        return tfl.gather(x, index.int(), dim % x.dim())

    decomp.add_pre_convert_decomp(aten.linear.default, linear)
    decomp.add_pre_lower_decomp(aten.bmm.default, product)
    decomp.add_pre_lower_decomp(aten.mean.dim, mean)
    decomp.add_pre_lower_decomp(aten.index_select.default, gather)
