"""Classes of channels that go together."""

from dataclasses import dataclass, field

import numpy as np

STAYS = 0
"""Number of the class of channels that must stay."""


@dataclass
class Classes:
    """Channels by number, and which of them go together.

    Example:
        >>> classes = Classes()
        >>> a, b = classes.new(3), classes.new(3)
        >>> classes.couple(a, b)
        >>> classes.stay(b[:1])
        >>> classes.roots()[a].tolist()
        [0, 2, 3]
    """

    count: int = 1
    _pairs: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def new(self, size: int) -> np.ndarray:
        """Return the numbers of new channels, each a class of its own. Shape ``[size]``."""
        self.count += size
        return np.arange(self.count - size, self.count)

    def couple(self, a: np.ndarray, b: np.ndarray) -> None:
        """Make one class of each pair of channels. Shapes that broadcast."""
        a, b = np.broadcast_arrays(a, b)
        self._pairs.append((a.ravel(), b.ravel()))

    def stay(self, a: np.ndarray) -> None:
        """Keep channels, and all that go together with them."""
        self.couple(a, np.array(STAYS))

    def roots(self) -> np.ndarray:
        """Return the lowest number in each channel's class. Shape ``[count]``."""
        root = np.arange(self.count)
        if not self._pairs:
            return root
        a, b = (np.concatenate(side) for side in zip(*self._pairs, strict=True))
        while True:
            low, high = np.minimum(root[a], root[b]), np.maximum(root[a], root[b])
            if np.array_equal(low, high):
                return root
            np.minimum.at(root, high, low)
            while not np.array_equal(root, root[root]):
                root = root[root]
