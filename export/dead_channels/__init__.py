"""Take dead channels out of an ONNX graph, exactly.

A *channel* is one index of an axis of a value or of a weight. Channels that can only go together
(through additions, concatenation, depthwise convolutions, flattening, attention heads) are one
*class*. A class is dead if each layer that reads one of its channels has only zeros for it, or gets
a constant there that its bias can take over, or needs it for dead channels alone. So a channel that
nobody reads is as dead as one that is always zero.

What is not understood keeps its channels, so a graph is never wrong, only larger than it might be.
"""

from mfac_compress.export.dead_channels.file import shrink_file
from mfac_compress.export.dead_channels.removal import Kept, remove_dead_channels

__all__ = ["Kept", "remove_dead_channels", "shrink_file"]
