"""F⁻¹ times the newest gradient, over a ring buffer of the last m gradients.

Of the k <= m gradients held, the rows of G ``[k, d]``, the newest is row i. With S = kλI + GGᵀ

    F Gᵀ = (λI + GᵀG/k) Gᵀ = Gᵀ S / k    hence    F⁻¹gᵢ = Gᵀc  with  c = k S⁻¹eᵢ

so a step reads the window twice: Ggᵢ, the one row of GGᵀ that a new gradient changes, and Gᵀc.
Unlike (x − GᵀS⁻¹Gx)/λ, this subtracts nothing as large as x/λ. GGᵀ and S are float64.

The window is stored in tiles of columns ``[m, w]``, each contiguous. Float32 sums run over one tile
only and are added in float64; where float32 is not accurate enough, a few rows of a tile at a time
are converted to float64, so that they are still in the cache when they are multiplied.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mfac_compress.mfac.checks import check_damping
from mfac_compress.mfac.numerics import damping_error

# Narrower tiles cost more calls. On an accelerator a sum of any length is a tree reduction, and
# short calls cost more than they save.
_TILE_WIDTH = 8192
_TILE_ELEMENTS = {"cpu": 1 << 22}
_ACCELERATOR_TILE_ELEMENTS = 1 << 24
# Elements converted to another dtype at a time.
_CPU_CONVERTED, _ACCELERATOR_CONVERTED = 1 << 18, 1 << 26

# Rounding errors of float32 sums of so many columns each, added in float64, relative to |gᵢ||gⱼ|:
# measured on nearly parallel gradients, whose errors are the largest. Shorter sums cost more calls.
_EPSILON = torch.finfo(torch.float32).eps
_FLOAT32_SUMS = ((_TILE_WIDTH, 8 * _EPSILON), (512, _EPSILON / 2))

# They are used if rounding errors amount to at most this relative change of the damping
_DAMPING_TOLERANCE = 1e-2
# and to at most this relative error of the result. Otherwise float64 is used; if that is not
# accurate enough either, an error is raised.
_RESULT_TOLERANCE = 1e-4


class SlidingFisher:
    """The damped empirical Fisher of the last m gradients: F = λI + (1/k) Σ gᵢgᵢᵀ.

    Memory: m d elements of the window's dtype, and m² float64.

    Args:
        tiles: The window's columns, in order. Each ``[m, w]``. Changed in place, kept by
            reference.
        gram: GGᵀ, float64. Shape ``[m, m]``. Changed in place, kept by reference.
        added: How many gradients have ever been added; the next row is ``added % m``. Integer
            scalar tensor on the CPU. Changed in place, kept by reference.
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
        """Allocate a window without gradients.

        Args:
            num_gradients: m.
            size: d.
            dtype: Storage dtype of the gradients.
            device: Device of the gradients.
        """
        device = torch.device(device)
        tiles = [
            torch.zeros(num_gradients, width, dtype=dtype, device=device)
            for width in _tile_widths(num_gradients, size, device)
        ]
        gram = torch.zeros(num_gradients, num_gradients, dtype=torch.float64, device=device)
        return cls(tiles, gram, torch.zeros((), dtype=torch.int64))

    def state(self) -> dict[str, list[Tensor] | Tensor]:
        """Return the constructor's arguments: the tensors themselves, not copies."""
        return {"tiles": list(self.tiles), "gram": self.gram, "added": self.added}

    @property
    def held(self) -> int:
        """k, the number of gradients held."""
        return min(int(self.added), self.num_gradients)

    def gradients(self) -> Tensor:
        """Return a copy of G, in the order of the ring buffer. Shape ``[k, d]``."""
        return torch.cat([tile[: self.held] for tile in self.tiles], dim=1)

    def push(self, gradient: Tensor, damping: float) -> Tensor:
        """Add a gradient to the window, replacing the oldest once it is full; return F⁻¹g.

        g is the gradient rounded to the window's dtype. Cost: two reads of the window and k³/3
        FLOPs in float64.

        Args:
            gradient: Finite. Shape ``[d]``.
            damping: λ. It may differ from step to step.

        Returns:
            F⁻¹g. Shape ``[d]``, the window's dtype, at least float32.

        Raises:
            ValueError: If the gradient is not ``[d]`` or the damping is not positive and finite.
            PrecisionError: If the damping is too small for the gradients in float64; the gradient
                is in the window then.
        """
        check_damping(damping)
        if gradient.shape != (self.size,):
            raise ValueError(
                f"gradient must have the shape [{self.size}]. Got {list(gradient.shape)}."
            )
        newest = int(self.added) % self.num_gradients
        gradient = gradient.to(self.dtype)
        for tile, part in self._with_tiles(gradient):
            tile[newest] = part
        self.added += 1
        square = torch.linalg.vector_norm(gradient, dtype=torch.float64).square()
        self._update_gram(newest, *self._sums(square, damping))
        self.gram[newest, newest] = square
        coefficients = self._coefficients(newest, damping)
        return self._combine(coefficients, self._combination_dtype(coefficients, newest, damping))

    def keep_columns(self, mask: Tensor) -> None:
        """Forget the removed weights: zero their columns and recompute GGᵀ.

        Afterwards F⁻¹g is that of the kept weights alone. Cost: k² d FLOPs in float64.

        Args:
            mask: True = kept. Shape ``[d]``.

        Raises:
            ValueError: If the mask is not ``[d]``.
        """
        if mask.shape != (self.size,):
            raise ValueError(f"mask must have the shape [{self.size}]. Got {list(mask.shape)}.")
        gram = self.gram[: self.held, : self.held].zero_()
        for tile, kept in self._with_tiles(mask):
            tile.masked_fill_(~kept, 0)
            wide = tile[: self.held].to(torch.float64)
            gram.addmm_(wide, wide.mT)

    def _update_gram(self, newest: int, dtype: torch.dtype, width: int) -> None:
        """Write Ggᵢ, in sums of ``width`` columns, into the newest row and column of GGᵀ."""
        k = self.held
        row = torch.zeros(k, dtype=torch.float64, device=self.gram.device)
        for tile in self.tiles:
            gradient = tile[newest].to(dtype).split(width)
            for rows, block in self._converted(tile, dtype):
                total = row[rows]
                for part, g in zip(block.split(width, dim=1), gradient, strict=True):
                    total += part.mv(g)
        self.gram[newest, :k] = row
        self.gram[:k, newest] = row

    def _sums(self, square: Tensor, damping: float) -> tuple[torch.dtype, int]:
        """Return how to sum Ggᵢ: the cheapest dtype and width whose error is small beside kλ in S.

        An error of ε|gᵢ||gⱼ| in each of a row's k elements is one of ε√k max|gᵢ||gⱼ| in S.

        Args:
            square: |gᵢ|² of the newest gradient.
        """
        widest, k = self.tiles[0].shape[1], self.held
        largest = self.gram.diagonal().max().maximum(square)
        size = (square * largest).sqrt().item() * k**0.5
        on_cpu = self.gram.device.type == "cpu"
        for width, error in _FLOAT32_SUMS if self.dtype != torch.float64 else ():
            if error * size <= _DAMPING_TOLERANCE * k * damping:
                return torch.float32, width if on_cpu else widest
        return torch.float64, widest

    def _coefficients(self, newest: int, damping: float) -> Tensor:
        """c = k S⁻¹eᵢ. Shape ``[k]``, float64."""
        k = self.held
        S = self.gram[:k, :k].clone()
        S.diagonal().add_(k * damping)
        factor, info = torch.linalg.cholesky_ex(S)
        if info:
            raise damping_error(damping, "float64 to invert the Fisher")
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
        coefficients = coefficients.to(dtype)
        for tile, part in self._with_tiles(result):
            total = torch.zeros_like(part, dtype=dtype)
            for rows, block in self._converted(tile, dtype):
                total.addmv_(block.mT, coefficients[rows])
            part.copy_(total)
        return result

    def _combination_dtype(self, coefficients: Tensor, newest: int, damping: float) -> torch.dtype:
        """Return the dtype whose rounding error of Σ cᵢgᵢ is small beside |Gᵀc| >= gᵀGᵀc / |g|."""
        gram = self.gram[: self.held, : self.held]
        terms = (coefficients.square() @ gram.diagonal()).sqrt().item()
        along_newest = (gram[newest] @ coefficients).item()
        allowed = _RESULT_TOLERANCE * along_newest
        narrowest = torch.promote_types(torch.float32, self.dtype)
        for dtype in (narrowest, torch.float64):
            if torch.finfo(dtype).eps / 2 * terms * gram[newest, newest].sqrt().item() <= allowed:
                return dtype
        raise damping_error(damping, "float64 to invert the Fisher")

    def _with_tiles(self, vector: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each tile with its part of a vector ``[d]``."""
        widths = [tile.shape[1] for tile in self.tiles]
        return zip(self.tiles, vector.split(widths), strict=True)

    def _converted(self, tile: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Yield a tile's k gradients in the given dtype, some rows at a time.

        Each is valid until the next one.
        """
        k, width = self.held, tile.shape[1]
        if dtype == self.dtype:
            yield slice(k), tile[:k]
            return
        elements = _CPU_CONVERTED if tile.device.type == "cpu" else _ACCELERATOR_CONVERTED
        at_once = min(k, max(1, elements // width))
        buffer = torch.empty(at_once, width, dtype=dtype, device=tile.device)
        for start in range(0, k, at_once):
            rows = slice(start, min(start + at_once, k))
            yield rows, buffer[: rows.stop - start].copy_(tile[rows])


def _tile_widths(num_gradients: int, size: int, device: torch.device) -> list[int]:
    """Return the widths of the tiles of d columns, nearly equal, the widest first."""
    elements = _TILE_ELEMENTS.get(device.type, _ACCELERATOR_TILE_ELEMENTS)
    widest = max(1, elements // num_gradients)
    if device.type == "cpu":
        widest = min(widest, _TILE_WIDTH)
    count = -(-size // widest)
    return [size // count + (tile < size % count) for tile in range(count)]
