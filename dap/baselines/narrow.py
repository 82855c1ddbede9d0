"""A narrower residual stream, as SAViT slices it. Not exact: norms then run over the kept channels alone."""

from dataclasses import replace

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from dap.compact import build, train_like
from dap.describe import architecture_of


def narrow(model: VisionTransformer, channels: Tensor) -> VisionTransformer:
    """The model with a narrower residual stream, on its device and in its mode.

    channels: sorted indices of the channels that stay, out of D. Norms then run over these alone, so that the result
    computes something else than the model with the other channels masked. Branches must read and write all channels.
    """
    dense = architecture_of(model)
    architecture = replace(dense, args=replace(dense.args, embed_dim=len(channels)))
    weights = {}
    for name, value in model.state_dict().items():
        if name.endswith(("qkv.weight", "fc1.weight", "head.weight", "head_dist.weight")):
            value = value[:, channels]  # reads the stream
        elif name.endswith(("token", "pos_embed")):
            value = value[..., channels]  # starts it
        elif not name.endswith(("qkv.bias", "fc1.bias", "head.bias", "head_dist.bias")):
            value = value[channels]  # writes to it or normalises it
        weights[name] = value.clone()
    small = build(architecture, weights).train(model.training)
    train_like(small, model)
    return small
