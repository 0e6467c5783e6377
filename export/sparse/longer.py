"""Longer inputs of a model, along the axes that it leaves open."""

from collections.abc import Collection, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from mfac_compress.export.sparse.graph import is_open, needed_inputs
from mfac_compress.export.sparse.probe import Feeds, Shapes, shapes_of

_BATCH = "batch of all inputs"


def shapes_at_lengths(
    model: ir.Model, names: Collection[str], feeds: Feeds, seconds: float | None = None
) -> list[tuple[Feeds, Shapes]]:
    """Find the shapes of values for the given inputs, and for longer ones.

    All open axes become longer at once, each name by another length. Where the model does not run
    on these, since two names stand for one length, all become longer by one; and where it does not
    run on these either, since some lengths cannot change, those that can do so one by one: by one,
    or to twice the length, where only multiples of it fit.

    Args:
        model: As for :func:`shapes_of`.
        names: Values of its main graph.
        feeds: Its inputs, on which it runs.
        seconds: Time limit of each run; None for no limit.
    Returns:
        Inputs, the given ones first, with the shapes of the values for them.
    """

    def attempt(more: Mapping[str, int]) -> list[tuple[Feeds, Shapes]]:
        longer = lengthen(model, feeds, more)
        try:
            return [(longer, shapes_of(model, names, longer, seconds))]
        except ValueError:
            return []

    lengths = _open_lengths(model, feeds)
    given = (feeds, shapes_of(model, names, feeds, seconds))
    together = [{name: place + 1 for place, name in enumerate(lengths)}, dict.fromkeys(lengths, 1)]
    for more in together if lengths else ():
        found = attempt(more)
        if found:
            return [given, *found]
    alone = (attempt({name: 1}) or attempt({name: size}) for name, size in lengths.items())
    return [given, *(found for each in alone for found in each)]


def lengthen(model: ir.Model, feeds: Feeds, more: Mapping[str, int]) -> Feeds:
    """Return inputs with more along some open axes: what is given, repeated.

    Args:
        model: Its inputs name the axes.
        feeds: Its inputs. What is empty gets zeros.
        more: By how much the axes of a name become longer.
    """
    longer = {}
    for value in needed_inputs(model):
        array = feeds[value.name]
        for axis, name in _open_axes(value):
            old, added = array.shape[axis], more.get(name, 0)
            if old:
                array = array.take(np.arange(old + added) % old, axis)
            else:
                array = np.zeros(
                    (*array.shape[:axis], added, *array.shape[axis + 1 :]), array.dtype
                )
        longer[value.name] = array
    return longer


def _open_lengths(model: ir.Model, feeds: Feeds) -> dict[str, int]:
    """Return the names of all open axes, and a length of each in the inputs."""
    return {
        name: feeds[value.name].shape[axis]
        for value in needed_inputs(model)
        for axis, name in _open_axes(value)
    }


def _open_axes(value: ir.Value) -> Iterator[tuple[int, str]]:
    """Yield the open axes of an input and their names; those without have names of their own,
    except the first, the batch."""
    for axis, size in enumerate(value.shape or ()):
        if is_open(size):
            unnamed = _BATCH if axis == 0 else f"axis {axis} of {value.name}"
            yield axis, getattr(size, "value", None) or unnamed
