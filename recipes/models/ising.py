"""A small Ising model in an external field, whose sums are exact.

    log f(x) = J Σ_(i,j) x_i x_j + Σ_i h_i x_i,   x_i in {-1, +1},   p(x) = f(x) / Z

over neighbours i, j of a grid with open ends. A transfer matrix adds one site at a time and keeps
only the last row, 2^columns numbers instead of 2^(rows columns).

References:
    Kramers and Wannier (1941), Statistics of the two-dimensional ferromagnet, part II.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SPINS = np.array([-1.0, 1.0])
UNKNOWN = 0
"""Stands for a spin that is summed over."""
_AT_ONCE = 256
"""Questions that are summed together: with 10 columns each takes 1,024 numbers, several times."""


@dataclass(frozen=True)
class Ising:
    """An Ising model on a grid, of which sites are numbered row by row.

    Attributes:
        coupling: J, the same for all neighbours.
        fields: h. Shape ``[rows, columns]``.
    """

    coupling: float
    fields: np.ndarray

    @classmethod
    def random(
        cls, rows: int, columns: int, coupling: float = 0.3, spread: float = 0.3, seed: int = 0
    ) -> "Ising":
        """Draw the fields from a normal distribution with a standard deviation of ``spread``."""
        fields = np.random.default_rng(seed).normal(0, spread, (rows, columns))
        return cls(coupling, fields)

    @property
    def sites(self) -> int:
        """D, the number of spins."""
        return self.fields.size

    def log_weights(self, spins: np.ndarray) -> np.ndarray:
        """Return log f(x).

        Args:
            spins: Of -1 and +1. Shape ``[n, sites]``.
        Returns:
            Shape ``[n]``, float64.
        """
        grid = spins.reshape(-1, *self.fields.shape).astype(np.float64)
        bonds = (grid[:, 1:] * grid[:, :-1]).sum((1, 2))
        bonds += (grid[:, :, 1:] * grid[:, :, :-1]).sum((1, 2))
        return self.coupling * bonds + (self.fields * grid).sum((1, 2))

    def log_sums(self, spins: np.ndarray) -> np.ndarray:
        """Return log Σ f(x) over all x that agree with the spins that are known.

        Args:
            spins: Of -1, +1 and 0, which is summed over. Shape ``[n, sites]``.
        Returns:
            Shape ``[n]``, float64. Of zeros it is log Z.
        """
        spins = np.asarray(spins).reshape(-1, self.sites)
        found = [
            np.logaddexp.reduce(last.reshape(len(last), -1), axis=1)
            for part in np.split(spins, range(_AT_ONCE, len(spins), _AT_ONCE))
            for *_, last in [self._frontiers(part)]
        ]
        return np.concatenate(found)

    def log_marginals(self, spins: np.ndarray) -> np.ndarray:
        """Return log p(x_S) of the known spins. ``[n, sites]`` -> ``[n]``."""
        return self.log_sums(spins) - self.log_sums(np.zeros((1, self.sites)))

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw independent exact samples, from the last site to the first.

        Returns:
            Spins of -1 and +1. Shape ``[count, sites]``, int8.
        """
        columns = self.fields.shape[1]
        frontiers = [each[0] for each in self._frontiers(np.zeros((1, self.sites)))]
        last = np.exp(frontiers[-1] - np.logaddexp.reduce(frontiers[-1], axis=None)).ravel()
        drawn = rng.choice(last.size, size=count, p=last / last.sum())
        row = list(np.unravel_index(drawn, frontiers[-1].shape))  # 0 or 1 in each column
        spins = np.empty((count, self.sites), dtype=np.int8)
        for site in reversed(range(self.sites)):
            column = site % columns
            spins[:, site] = SPINS[row[column]]
            if site < columns:
                continue
            # The spin above it, given all that come after: what the frontier before says, and
            # the bond between the two.
            log_odds = 2 * self.coupling * SPINS[row[column]]
            for sign, above in ((1, 1), (-1, 0)):
                row[column] = np.full(count, above)
                log_odds = log_odds + sign * frontiers[site - 1][tuple(row)]
            row[column] = (rng.random(count) < 1 / (1 + np.exp(-log_odds))).astype(int)
        return spins

    def _frontiers(self, spins: np.ndarray) -> Iterator[np.ndarray]:
        """After each site, log Σ f of all sites so far for each value of the last in each column.

        Yields:
            Shape ``[n, 2, 2, ...]``, an axis for each column; of length 1 in columns without a site
            so far. The bond to the left is counted with the site, that above as well.
        """
        rows, columns = self.fields.shape
        frontier = np.zeros((len(spins), *[1] * columns))
        bond = self.coupling * np.outer(SPINS, SPINS)
        for row in range(rows):
            for column in range(columns):
                values = np.moveaxis(frontier, column + 1, -1)[..., None]  # [..., above, new]
                if row:
                    values = values + bond
                values = np.logaddexp.reduce(np.broadcast_to(values, (*values.shape[:-1], 2)), -2)
                own = self._own(spins[:, row * columns + column], self.fields[row, column])
                frontier = np.moveaxis(
                    values + own.reshape(-1, *[1] * (columns - 1), 2), -1, column + 1
                )
                if column:
                    shape = [1] * (columns + 1)
                    shape[column : column + 2] = 2, 2
                    frontier = frontier + bond.reshape(shape)
                yield frontier

    @staticmethod
    def _own(spins: np.ndarray, field: float) -> np.ndarray:
        """Terms of one site, -inf for the value that a known spin does not have. ``[n, 2]``."""
        excluded = spins[:, None] * SPINS < 0
        return np.where(excluded, -np.inf, field * SPINS)
