"""What the probes are given: copies of the residual stream of a timm ViT while it trains.

Key: B batch, N tokens, D width.
"""

from typing import Any

import torch
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

    LEAST_IMAGES = 8  # a small step is not thinned below this: the probes' batch norm needs some

    def __init__(self, model: VisionTransformer, every: int, images_per_step: int | None = None) -> None:
        """every: copy the patches of every n-th image.
        images_per_step: of all its forwards, in all processes; None: a step is one forward in one process
        """
        self.open = False
        self.every = every
        self._images_per_step = images_per_step
        self._model = model
        self._prefix = model.num_prefix_tokens
        self._pooled: int | None = None  # first of the tokens that are averaged for the head
        if model.global_pool != "token":
            self._pooled = 0 if model.pool_include_prefix else self._prefix
        # of the forwards since the last take(), no more than a step has: at every place, of each the images and copies
        self._copies: list[list[tuple[int, Tensor, Tensor]]] = [[] for _ in range(2 * len(model.blocks) + 1)]
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
            batch, x_BND, copies = len(x_BND), x_BND.detach(), self._copies[place]
            class_ = x_BND[:, 0].clone() if self._pooled is None else x_BND[:, self._pooled :].mean(1)
            copies.append((batch, class_, x_BND[:: self._stride(batch), self._prefix :].clone()))
            while len(copies) > 1 and sum(size for size, _, _ in copies) > (self._images_per_step or batch):
                del copies[0]

    def _stride(self, batch: int) -> int:
        """The n of every n-th image; halved, so that the images of a step are the same ones whatever its parts are."""
        stride = self.every
        while stride > 1 and (self._images_per_step or batch) // stride < self.LEAST_IMAGES:
            stride //= 2
        return stride

    def take(self, targets: Tensor) -> Tokens:
        """The copies of the last training forwards, as many as have these targets.

        targets: (B, ...) of whole batches, in their order
        Raises ValueError if there was no forward, or none of so many images.
        """
        if not all(self._copies):
            raise ValueError("no training forward has been seen: call model(images) in train mode before step(targets)")
        sizes = [size for size, _, _ in self._copies[-1]]
        count = next((n for n in range(1, len(sizes) + 1) if sum(sizes[-n:]) == len(targets)), 0)
        if not count:
            raise ValueError(f"{len(targets)} targets for a forward of {sizes[-1]} images: pass the last batch's own")
        patches = self._model.patch_embed.num_patches
        if (seen := self._copies[0][-1][2].shape[1]) != patches:  # dynamic_img_size
            raise ValueError(
                f"images of {seen} patches, where the model is made for {patches}: call its set_input_size() first"
            )
        places = [copies[-count:] for copies in self._copies]
        self._copies = [[] for _ in places]
        return Tokens(
            class_=[torch.cat([class_ for _, class_, _ in copies]).float() for copies in places],
            patches=[torch.cat([patches for _, _, patches in copies]).float() for copies in places],
            targets=targets,
            patch_targets=torch.cat([part[:: self._stride(len(part))] for part in targets.split(sizes[-count:])]),
        )

    def remove(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()
