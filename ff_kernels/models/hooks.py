"""Where a host may step in between the parts of a U-Net: after blocks, at skips, inside attentions."""

from typing import TYPE_CHECKING, Literal

from torch import Tensor

if TYPE_CHECKING:
    from .blocks import Attention

# Down levels are input blocks, one per pair of residual blocks. The first up level takes no skip: it is the middle.
Place = Literal["input", "middle", "output"]


class Hooks:
    """Steps in nowhere; a host derives from it.

    Attributes:
        takes_positions: whether attention over the positions of a frame is left to ``attend``.
        takes_text: whether attention to the text is.
    """

    takes_positions = False
    takes_text = False

    def start(self, x: Tensor) -> Tensor:
        """Begin a forward: ``x`` ``[N, C, H, W]`` is what the first layer made, the input block 0."""
        return x

    def enter(self, place: Place) -> None:
        """Begin the next block of a place."""

    def leave(self, x: Tensor) -> Tensor:
        """Look at what a block made; behind a down level that is its skip as well."""
        return x

    def leave_skip(self, x: Tensor) -> Tensor:
        """Look at what goes on to the next block, after the skip is kept."""
        return x

    def join(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """Look at both sides of a skip before they are concatenated."""
        return x, skip

    def finish(self, x: Tensor) -> Tensor:
        """Look at what goes into the last layer: ``[N, C, H, W]`` of the first layer's sides."""
        return x

    def attend(self, attention: "Attention", tokens: Tensor, sides: tuple[int, int], *, is_text: bool) -> Tensor:
        """Run an attention in the network's place.

        Args:
            attention: its projections.
            tokens: normalised activations ``[N, P, C]``.
            sides: height and width, P = their product.
            is_text: whether keys and values are the text's.

        Returns:
            ``[N, P, C]``, to be added to the activations.
        """
        raise NotImplementedError


NO_HOOKS = Hooks()
