"""Which of a checkpoint's entries are the weights that are meant.

Training scripts keep weights under many keys, and often two sets of them: those that were trained
and their moving average, the one that is to ship. Where two could be meant, the recipe says which.
"""

import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.quoting import listed, shortened, with_article

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training scripts keep the weights in a checkpoint."""

_KEY = "model.weights"
_AVERAGED = re.compile(r"(^|[._])(ema|swa|avg|averag|polyak|shadow|moving)", re.IGNORECASE)
_TRAINING_STATE = re.compile(r"optim|sched|scaler|grad|rng", re.IGNORECASE)
_MOST_DEPTH = 5
_MOST_ENTRIES = 20_000
_LISTED = 10

Weights = Mapping[str, Any] | nn.Module


@dataclass(frozen=True)
class Chosen:
    """Weights out of a checkpoint.

    Attributes:
        weights: A state dict, or a module that was pickled whole.
        key: Where they stand in the checkpoint, with dots; None for the checkpoint itself.
    """

    weights: Weights
    key: str | None


def choose_weights(loaded: Any, wanted: str | None, path: Path) -> Chosen:
    """Take the weights out of a checkpoint.

    Args:
        loaded: What the file holds.
        wanted: The recipe's ``model.weights``: a key of the checkpoint, dotted for one within
            another; None to find them.
        path: The file, for messages.
    Returns:
        The weights and where they were.
    Raises:
        InputError: If there are none under that key, or none or several that could be meant.
    """
    if wanted is None:
        chosen = _descend(loaded, (), path)
        _check_only_one(loaded, chosen, path)
    else:
        inner, keys = _entry(loaded, wanted, path)
        chosen = _descend(inner, keys, path)
    return chosen


def _entry(loaded: Any, wanted: str, path: Path) -> tuple[Any, tuple[str, ...]]:
    keys: tuple[str, ...] = ()
    rest = wanted
    while rest:
        here = loaded if isinstance(loaded, Mapping) else ()
        names = [name for name in here if isinstance(name, str)]
        # A key may hold dots itself: the longest that fits.
        fitting = [name for name in names if rest == name or rest.startswith(name + ".")]
        if not fitting:
            raise InputError(
                f"{_KEY} must name weights in {path}. Got {wanted!r}. {_what_there_is(loaded)}"
            )
        name = max(fitting, key=len)
        loaded, keys, rest = loaded[name], (*keys, name), rest[len(name) + 1 :]
    return loaded, keys


def _what_there_is(loaded: Any) -> str:
    if not isinstance(loaded, Mapping):
        return f"There is {with_article(type(loaded).__name__)}, without keys."
    found = ", ".join(dict(_candidates(loaded))) or _keys(loaded)
    return f"There is {found}."


def _descend(loaded: Any, keys: tuple[str, ...], path: Path) -> Chosen:
    seen: set[int] = set()
    while isinstance(loaded, Mapping) and not is_state_dict(loaded):
        inner = [key for key in WRAPPERS if isinstance(loaded.get(key), Mapping | nn.Module)]
        if len(inner) != 1 or id(loaded) in seen:
            raise InputError(_not_one(loaded, keys, path))
        seen.add(id(loaded))
        loaded, keys = loaded[inner[0]], (*keys, inner[0])
    if not isinstance(loaded, Mapping | nn.Module):
        raise InputError(
            f"{path} must hold a state_dict. Got {with_article(type(loaded).__name__)}"
            f"{' under ' + '.'.join(keys) if keys else ''}. Save model.state_dict()."
        )
    return Chosen(loaded, ".".join(keys) or None)


def _not_one(loaded: Mapping[Any, Any], keys: tuple[str, ...], path: Path) -> str:
    candidates = [".".join((*keys, key)) for key, _ in _candidates(loaded)]
    advice = "Save the state_dict alone."
    if candidates:
        advice = f"Set {_KEY} to the one that is meant: {', '.join(candidates[:_LISTED])}."
    return (
        f"{path} must hold one state_dict, at the top or under one of {', '.join(WRAPPERS)}. "
        f"Got a dict with {_keys(loaded)}. {advice}"
    )


def _check_only_one(loaded: Any, chosen: Chosen, path: Path) -> None:
    """Check that nothing else in the checkpoint could be meant.

    Raises:
        InputError: If there is a second set of the same tensors, or of averages.
    """
    if chosen.key is None or not isinstance(loaded, Mapping):
        return
    own = _sizes(chosen.weights)
    others = [
        key
        for key, entry in _candidates(loaded)
        if entry is not chosen.weights
        and not _is_within(chosen.key, key)
        and _resembles(own, entry)
    ]
    others += [
        str(key)
        for key, entry in loaded.items()
        if _AVERAGED.search(str(key))
        and not _is_within(chosen.key, str(key))
        and not any(_is_within(other, str(key)) for other in others)
        and sum(_all_sizes(entry)) >= sum(own) / 2
    ]
    if others:
        raise InputError(
            f"{path} must say which weights are meant. It has {', '.join([chosen.key, *others])}, "
            "and averaged weights are usually those that ship. "
            f"Set {_KEY} in the recipe to the one that is to be compressed."
        )


def _is_within(key: str, other: str) -> bool:
    return key == other or key.startswith(other + ".") or other.startswith(key + ".")


def _resembles(own: list[int], entry: Weights) -> bool:
    """Whether weights have half of the tensors' sizes of others at least."""
    common = (Counter(own) & Counter(_sizes(entry))).total()
    return common >= max(len(own) / 2, 1)


def _sizes(weights: Weights) -> list[int]:
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    return [_numel(value) for value in state.values() if isinstance(value, Tensor)]


def _numel(tensor: Tensor) -> int:
    return prod(tensor.shape) if not tensor.is_nested else 0


def _all_sizes(entry: Any) -> Iterator[int]:
    for part in _walk(entry):
        if isinstance(part, nn.Module):
            yield from _sizes(part)
        elif isinstance(part, Tensor):
            yield _numel(part)


def _walk(entry: Any) -> Iterator[Any]:
    """What lies in nested containers, each once: a checkpoint may contain itself."""
    waiting, seen = [entry], set()
    while waiting and len(seen) < _MOST_ENTRIES:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        if isinstance(part, Mapping):
            waiting += part.values()
        elif isinstance(part, list | tuple):
            waiting += part


def _candidates(loaded: Mapping[Any, Any]) -> Iterator[tuple[str, Weights]]:
    """State dicts and modules in a checkpoint by their dotted keys, each once."""
    waiting: deque[tuple[tuple[str, ...], Mapping[Any, Any]]] = deque([((), loaded)])
    seen = {id(loaded)}
    while waiting:
        keys, mapping = waiting.popleft()
        for key, entry in mapping.items():
            if not isinstance(key, str) or _TRAINING_STATE.search(key) or id(entry) in seen:
                continue
            if isinstance(entry, nn.Module) or is_state_dict(entry):
                yield ".".join((*keys, key)), entry
            elif isinstance(entry, Mapping) and len(keys) < _MOST_DEPTH:
                seen.add(id(entry))
                waiting.append(((*keys, key), entry))


def is_state_dict(loaded: Any) -> bool:
    """Whether something is what ``state_dict()`` returns; an empty one is none."""
    # A module may keep `_extra_state` of any type among its tensors.
    return (
        isinstance(loaded, Mapping)
        and any(isinstance(value, Tensor) for value in loaded.values())
        and all(
            isinstance(key, str) and (isinstance(value, Tensor) or key.endswith("_extra_state"))
            for key, value in loaded.items()
        )
    )


def _keys(loaded: Mapping[Any, Any]) -> str:
    return listed([shortened(str(key)) for key in loaded]) or "nothing"
