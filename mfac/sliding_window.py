"""F⁻¹ of the newest gradient, over a ring of the last m gradients.

Of the k <= m gradients held, the rows of G ``[k, d]``, the newest is row i. With S = kλI + GGᵀ

    F Gᵀ = (λI + GᵀG/k) Gᵀ = Gᵀ S / k    hence    F⁻¹gᵢ = Gᵀc  with  c = k S⁻¹eᵢ

so a step reads the window twice: Ggᵢ, the one row of GGᵀ that a new gradient changes, and Gᵀc.
Unlike (x − GᵀS⁻¹Gx)/λ, nothing the size of x/λ is subtracted. GGᵀ and S are float64.

The window lies in tiles of columns ``[m, w]``, each contiguous. Float32 sums run over one tile only
and add up in float64, and a tile is the unit that is widened where float32 is not exact enough.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mfac_compress.mfac.inverse import check_damping

# Up to this width a tile's sums are exact to about float32's epsilon on a CPU, measured on parallel
# gradients, while narrower tiles cost more calls. On an accelerator a sum is a tree whatever its
# length, and short calls cost more than they save.
_TILE_WIDTH = 8192
_TILE_ELEMENTS = {"cpu": 1 << 22}
_ACCELERATOR_TILE_ELEMENTS = 1 << 24

# Float32 sums are taken while their rounding acts at most like this change of the damping,
_DAMPING_TOLERANCE = 1e-2
# and round the result by at most this share of its length. Beyond either, float64; where that
# does not do either, an error.
_RESULT_TOLERANCE = 1e-4
_ROUNDING = torch.finfo(torch.float32).eps


class SlidingFisher:
    """The damped empirical Fisher of the last m gradients: F = λI + (1/k) Σ gᵢgᵢᵀ.

    Memory: m d elements of the window's dtype, and m² float64.

    Args:
        tiles: The window's columns, in order. Each ``[m, w]``. Changed in place, kept by
            reference.
        gram: GGᵀ, float64. Shape ``[m, m]``. Changed in place, kept by reference.
        added: How many gradients have ever been added; the ring's next row is ``added % m``.
            Integer, no dimension, on the CPU. Changed in place, kept by reference.
    """

    def __init__(self, tiles: Sequence[Tensor], gram: Tensor, added: Tensor) -> None:
        self.tiles = tiles
        self.gram = gram
        self.added = added
        self.num_gradients = gram.shape[0]
        self.size = sum(tile.shape[1] for tile in tiles)
        self.dtype = tiles[0].dtype

    @classmethod
    def empty(
        cls,
        num_gradients: int,
        size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> "SlidingFisher":
        """A window without gradients; its memory is taken here.

        Args:
            num_gradients: m.
            size: d.
            dtype: Storage of the gradients.
            device: Where they live.
        """
        device = torch.device(device)
        tiles = [
            torch.zeros(num_gradients, width, dtype=dtype, device=device)
            for width in _tile_widths(num_gradients, size, device)
        ]
        gram = torch.zeros(num_gradients, num_gradients, dtype=torch.float64, device=device)
        return cls(tiles, gram, torch.zeros((), dtype=torch.int64))

    def state(self) -> dict[str, list[Tensor] | Tensor]:
        """The constructor's arguments: the tensors themselves, not copies."""
        return {"tiles": list(self.tiles), "gram": self.gram, "added": self.added}

    @property
    def held(self) -> int:
        """k, the number of gradients held."""
        return min(int(self.added), self.num_gradients)

    def gradients(self) -> Tensor:
        """A copy of G, in the ring's order. Shape ``[k, d]``."""
        return torch.cat([tile[: self.held] for tile in self.tiles], dim=1)

    def push(self, gradient: Tensor, damping: float) -> Tensor:
        """Take a gradient into the window, in place of the oldest once it is full; return F⁻¹g.

        g is the gradient as the window holds it, rounded to the window's dtype. Cost: two reads of
        the window and k³/3 FLOPs in float64.

        Args:
            gradient: Finite. Shape ``[d]``.
            damping: λ. It may differ from step to step.

        Returns:
            F⁻¹g. Shape ``[d]``, float32 or float64, whichever holds the window's dtype.

        Raises:
            ValueError: If the gradient is not ``[d]`` or the damping is not usable. If the damping
                is too small beside the gradients for float64; the window has taken the gradient
                then.
        """
        check_damping(damping)
        if gradient.shape != (self.size,):
            raise ValueError(
                f"gradient must have the shape [{self.size}]. Got {list(gradient.shape)}."
            )
        newest = int(self.added) % self.num_gradients
        widths = [tile.shape[1] for tile in self.tiles]
        for tile, part in zip(self.tiles, gradient.split(widths), strict=True):
            tile[newest] = part
        self.added += 1
        square = torch.linalg.vector_norm(gradient, dtype=torch.float64).square()
        self._renew_gram(newest, self._product_dtype(square, damping))
        coefficients = self._coefficients(newest, damping)
        return self._combine(coefficients, self._combination_dtype(coefficients, newest, damping))

    def keep_columns(self, mask: Tensor) -> None:
        """Forget the removed weights: zero their columns and form GGᵀ anew.

        Afterwards F⁻¹g is that of the kept weights alone. Cost: k² d FLOPs in float64.

        Args:
            mask: True = kept. Shape ``[d]``.

        Raises:
            ValueError: If the mask is not ``[d]``.
        """
        if mask.shape != (self.size,):
            raise ValueError(f"mask must have the shape [{self.size}]. Got {list(mask.shape)}.")
        widths = [tile.shape[1] for tile in self.tiles]
        for tile, kept in zip(self.tiles, mask.split(widths), strict=True):
            tile.masked_fill_(~kept, 0)
        gram = self.gram[: self.held, : self.held].zero_()
        for tile in self._widened(torch.float64):
            gram.addmm_(tile, tile.mT)

    def _renew_gram(self, newest: int, dtype: torch.dtype) -> None:
        """Put Ggᵢ into the row and column of GGᵀ that belong to the newest gradient."""
        k = self.held
        row = torch.zeros(k, dtype=torch.float64, device=self.gram.device)
        for tile in self._widened(dtype):
            row += tile.mv(tile[newest])
        self.gram[newest, :k] = row
        self.gram[:k, newest] = row

    def _product_dtype(self, square: Tensor, damping: float) -> torch.dtype:
        """Float32 if its rounding of GGᵀ, ε √k |gᵢ||gⱼ|, is small beside the damping kλ in S."""
        if self.dtype == torch.float64:
            return torch.float64
        k = self.held
        largest = self.gram.diagonal().max().maximum(square)
        rounding = _ROUNDING * (square * largest).sqrt().item() * k**0.5
        return torch.float32 if rounding <= _DAMPING_TOLERANCE * k * damping else torch.float64

    def _coefficients(self, newest: int, damping: float) -> Tensor:
        """c = k S⁻¹eᵢ. Shape ``[k]``, float64."""
        k = self.held
        S = self.gram[:k, :k].clone()
        S.diagonal().add_(k * damping)
        factor, info = torch.linalg.cholesky_ex(S)
        if info:
            raise _damping_too_small(damping)
        unit = torch.zeros(k, 1, dtype=torch.float64, device=S.device)
        unit[newest] = k
        return torch.cholesky_solve(unit, factor).squeeze(1)

    def _combine(self, coefficients: Tensor, dtype: torch.dtype) -> Tensor:
        """Gᵀc, summed in the given dtype. Shape ``[d]``."""
        result = torch.empty(
            self.size,
            dtype=torch.promote_types(torch.float32, self.dtype),
            device=self.gram.device,
        )
        widths = [tile.shape[1] for tile in self.tiles]
        for tile, part in zip(self._widened(dtype), result.split(widths), strict=True):
            part.copy_(tile.mT.mv(coefficients.to(dtype)))
        return result

    def _combination_dtype(self, coefficients: Tensor, newest: int, damping: float) -> torch.dtype:
        """The dtype that rounds the sum of the terms cᵢgᵢ by little of |Gᵀc| >= gᵀGᵀc / |g|."""
        gram = self.gram[: self.held, : self.held]
        terms = (coefficients.square() @ gram.diagonal()).sqrt().item()
        along_newest = (gram[newest] @ coefficients).item()
        allowed = _RESULT_TOLERANCE * along_newest
        narrowest = torch.promote_types(torch.float32, self.dtype)
        for dtype in (narrowest, torch.float64):
            if torch.finfo(dtype).eps / 2 * terms * gram[newest, newest].sqrt().item() <= allowed:
                return dtype
        raise _damping_too_small(damping)

    def _widened(self, dtype: torch.dtype) -> Iterator[Tensor]:
        """The tiles' k gradients in the given dtype; valid until the next is asked for."""
        if dtype == self.dtype:
            yield from (tile[: self.held] for tile in self.tiles)
            return
        k, widest = self.held, self.tiles[0].shape[1]
        buffer = torch.empty(k * widest, dtype=dtype, device=self.gram.device)
        for tile in self.tiles:
            wide = buffer[: k * tile.shape[1]].view(k, tile.shape[1])
            yield wide.copy_(tile[:k])


def _damping_too_small(damping: float) -> ValueError:
    return ValueError(
        f"damping must be large enough for float64 to invert the Fisher. Got {damping}, which "
        "vanishes beside the gradients. Try ten times more, or scale the loss down."
    )


def _tile_widths(num_gradients: int, size: int, device: torch.device) -> list[int]:
    """d columns in tiles of nearly one width, the first the widest."""
    elements = _TILE_ELEMENTS.get(device.type, _ACCELERATOR_TILE_ELEMENTS)
    widest = max(1, elements // num_gradients)
    if device.type == "cpu":
        widest = min(widest, _TILE_WIDTH)
    count = -(-size // widest)
    return [size // count + (tile < size % count) for tile in range(count)]
