"""A small vision transformer (Dosovitskiy et al. 2021) for 8x8 digits: 16 patches of 2x2 pixels."""

from torch import Tensor, nn, zeros
from torch.nn import functional as F

WIDTH, HIDDEN, HEADS, LAYERS = 96, 192, 4, 3


class Attention(nn.Module):
    """Self-attention with several heads.

    Args:
        width: Features of a patch.
        heads: How many, each of ``width / heads`` features.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, patches, width]`` to the same shape."""
        heads = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind()
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A transformer layer that normalises before each branch.

    Args:
        width: Features of a patch.
        hidden: Neurons of the second branch.
        heads: Of attention.
    """

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """``[n, patches, width]`` to the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches with learned positions, transformer layers, the mean of the patches, ten scores."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, 2, stride=2)
        self.positions = nn.Parameter(zeros(1, 16, WIDTH))
        nn.init.normal_(self.positions, std=0.02)
        self.layers = nn.Sequential(*[Layer(WIDTH, HIDDEN, HEADS) for _ in range(LAYERS)])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, 1, 8, 8]`` in 0..1 to scores ``[n, 10]``."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.layers(x)).mean(1))


def vit_digits() -> VisionTransformer:
    """Build the network, untrained; 227,530 parameters."""
    return VisionTransformer()
