"""Networks of published shapes in plain PyTorch, with random weights.

ResNet-50 (He et al. 2016, the stride in the 3x3 convolution), MobileNetV2 (Sandler et al. 2018),
BERT-base (Devlin et al. 2019) and ViT-small/16 (Touvron et al. 2021).
"""

import torch
from torch import Tensor, nn


class _Bottleneck(nn.Module):
    """ResNet's block: 1x1, 3x3 and 1x1 convolutions beside a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_convolution(inputs, width, 1, activation=nn.ReLU()),
            *_convolution(width, width, 3, stride, activation=nn.ReLU()),
            *_convolution(width, 4 * width, 1),
        )
        same = stride == 1 and inputs == 4 * width
        self.shortcut = nn.Sequential(*([] if same else _convolution(inputs, 4 * width, 1, stride)))

    def forward(self, x: Tensor) -> Tensor:
        return (self.layers(x) + self.shortcut(x)).relu()


def _convolution(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    *,
    groups: int = 1,
    activation: nn.Module | None = None,
) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    return [convolution, nn.BatchNorm2d(outputs), *([activation] if activation else [])]


def resnet50(classes: int = 1000, width: int = 64) -> nn.Module:
    """Build a ResNet-50; ``width`` is that of the first stage."""
    layers = [*_convolution(3, width, 7, 2, activation=nn.ReLU()), nn.MaxPool2d(3, 2, 1)]
    channels = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            inner = width << stage
            layers.append(_Bottleneck(channels, inner, 1 if block or not stage else 2))
            channels = 4 * inner
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return nn.Sequential(*layers, *head)


class _Inverted(nn.Module):
    """MobileNetV2's block: expand, depthwise convolution, project."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = _convolution(inputs, hidden, 1, activation=nn.ReLU6()) if expansion > 1 else []
        self.layers = nn.Sequential(
            *expand,
            *_convolution(hidden, hidden, 3, stride, groups=hidden, activation=nn.ReLU6()),
            *_convolution(hidden, outputs, 1),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.adds else self.layers(x)


_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
           (6, 160, 3, 2), (6, 320, 1, 1))  # fmt: skip
"""Expansion, outputs, repeats and first stride of each stage of MobileNetV2, table 2."""


def mobilenetv2(classes: int = 1000) -> nn.Module:
    """Build a MobileNetV2 of width 1."""
    layers, channels = _convolution(3, 32, 3, 2, activation=nn.ReLU6()), 32
    for expansion, outputs, repeats, first in _STAGES:
        for place in range(repeats):
            layers.append(_Inverted(channels, outputs, 1 if place else first, expansion))
            channels = outputs
    layers += _convolution(channels, 1280, 1, activation=nn.ReLU6())
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, classes)]
    return nn.Sequential(*layers, *head)


class Attention(nn.Module):
    """Self-attention with a linear layer each for queries, keys and values."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (
            nn.Linear(features, features) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(_attend(*(f(x) for f in (self.query, self.key, self.value)), self.heads))


class _FusedAttention(nn.Module):
    """Self-attention with one linear layer for queries, keys and values."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(features, 3 * features), nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(_attend(*self.qkv(x).chunk(3, -1), self.heads))


def _attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Return softmax(Q Kᵀ / √d) V of each head, side by side. Shapes ``[n, tokens, features]``."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


class PostNormLayer(nn.Module):
    """A transformer layer that normalises after each sum, as BERT's."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(features, heads)
        self.up, self.down = nn.Linear(features, 4 * features), nn.Linear(4 * features, features)
        self.norm1, self.norm2 = nn.LayerNorm(features), nn.LayerNorm(features)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.down(nn.functional.gelu(self.up(x))))


class _PreNormLayer(nn.Module):
    """A transformer layer that normalises before each branch, as ViT's."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.attention = _FusedAttention(features, heads)
        self.up, self.down = nn.Linear(features, 4 * features), nn.Linear(4 * features, features)
        self.norm1, self.norm2 = nn.LayerNorm(features), nn.LayerNorm(features)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Bert(nn.Module):
    """BERT: embeddings of tokens, transformer layers, pooled first token."""

    def __init__(self, layers: int, features: int, heads: int, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, features)
        self.positions, self.types = nn.Embedding(512, features), nn.Embedding(2, features)
        self.norm = nn.LayerNorm(features)
        self.layers = nn.Sequential(*(PostNormLayer(features, heads) for _ in range(layers)))
        self.pooler = nn.Linear(features, features)

    def forward(self, tokens: Tensor) -> Tensor:
        embedded = self.tokens(tokens) + self.types.weight[0]
        embedded = embedded + self.positions.weight[: tokens.shape[1]]
        return self.pooler(self.layers(self.norm(embedded))[:, 0]).tanh()


def bert_base() -> nn.Module:
    """Build BERT-base."""
    return Bert(layers=12, features=768, heads=12, vocabulary=30522)


class VisionTransformer(nn.Module):
    """ViT: embeddings of 16 x 16 patches and a class token, transformer layers, a classifier."""

    def __init__(self, layers: int, features: int, heads: int, classes: int = 1000) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, features, 16, 16)
        self.first = nn.Parameter(torch.zeros(1, 1, features))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 197, features))
        self.layers = nn.Sequential(*(_PreNormLayer(features, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(features), nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), -1, -1), patches], 1) + self.positions
        return self.head(self.norm(self.layers(x))[:, 0])


def vit_small() -> nn.Module:
    """Build a ViT-small/16."""
    return VisionTransformer(layers=12, features=384, heads=6)
