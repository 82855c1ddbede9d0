"""What the probes are given: copies of the residual stream of a timm ViT while it trains.

Key: B batch, N tokens, D width.
"""

from typing import Any, cast

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dap.indicator import Tokens


class TokenTap:
    """Copies the residual stream before every branch and after the last one while the model trains: 2 L + 1 places.

    Only while the tap is open, and the patch tokens of some images only; the copies are detached from the graph. Of a
    distilled model's two prefix tokens the class token is copied: the other would need probes of its own, and the paper
    has none.

    The class-token probe is given what the head reads. A model that pools has nothing else for its head than the mean
    of the tokens: there that is what the probe sees, of attention pooling too, whose own weights change as it learns.
    """

    LEAST_IMAGES = 8  # a small batch is not thinned below this: the probes' batch norm needs some

    def __init__(self, model: VisionTransformer, every: int) -> None:
        """every: copy the patches of every n-th image."""
        self.open = False
        self.every = every
        self._model = model
        self._prefix = model.num_prefix_tokens
        self._pooled: int | None = None  # first of the tokens that are averaged for the head
        if model.global_pool != "token":
            self._pooled = 0 if model.pool_include_prefix else self._prefix
        self._batch = 0
        self._copies: list[tuple[Tensor, Tensor] | None] = [None] * (2 * len(model.blocks) + 1)
        self._hooks = []
        block: Any
        for i, block in enumerate(model.blocks):
            for place, norm in ((2 * i, block.norm1), (2 * i + 1, block.norm2)):
                self._hooks.append(norm.register_forward_pre_hook(self._before(place, norm)))
        last = block
        self._hooks.append(last.register_forward_hook(lambda module, _, out: self._keep(-1, module is last, out)))

    def _before(self, place: int, norm: nn.Module) -> Any:
        return lambda module, inputs: self._keep(place, module is norm, inputs[0])

    def _keep(self, place: int, own: bool, x_BND: Tensor) -> None:
        """own: called for the tapped model itself; a copy of it has the same hooks."""
        if self.open and own and self._model.training:
            self._batch, x_BND = len(x_BND), x_BND.detach()
            class_ = x_BND[:, 0].clone() if self._pooled is None else x_BND[:, self._pooled :].mean(1)
            self._copies[place] = class_, x_BND[:: self._stride, self._prefix :].clone()

    @property
    def _stride(self) -> int:
        return max(1, min(self.every, self._batch // self.LEAST_IMAGES))

    def take(self, targets: Tensor) -> Tokens:
        """The copies of the last training forward.

        targets: (B, ...) of the whole batch. Raises ValueError if there was no forward or it had another batch size.
        """
        if any(copy is None for copy in self._copies):
            raise ValueError("no training forward has been seen: call model(images) in train mode before step(targets)")
        if len(targets) != self._batch:
            raise ValueError(f"{len(targets)} targets for a forward of {self._batch} images: pass the last batch's own")
        patches = self._model.patch_embed.num_patches
        if (seen := cast(tuple[Tensor, Tensor], self._copies[0])[1].shape[1]) != patches:  # dynamic_img_size
            raise ValueError(
                f"images of {seen} patches, where the model is made for {patches}: call its set_input_size() first"
            )
        pairs = [cast(tuple[Tensor, Tensor], copy) for copy in self._copies]
        self._copies = [None] * len(self._copies)
        return Tokens(
            class_=[class_.float() for class_, _ in pairs],
            patches=[patches.float() for _, patches in pairs],
            targets=targets,
            patch_targets=targets[:: self._stride],
        )

    def remove(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()
