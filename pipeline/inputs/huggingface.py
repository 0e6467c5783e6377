"""Folders as the transformers library saves them: ``config.json`` and ``*.safetensors``.

Nothing in such a folder is run. Its configuration is data, from which a class of the installed
library is built; its weights are safetensors. Files of Python beside them, and what the
configuration says of such files, are passed over, and neither the network nor a cache is read.
"""

import hashlib
import inspect
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, float32, nn

from mfac_compress.pipeline.errors import InputError, describe
from mfac_compress.pipeline.files import check_regular
from mfac_compress.pipeline.inputs.checkpoint import read_checkpoint
from mfac_compress.pipeline.inputs.pooling import install_logits, install_pooling
from mfac_compress.pipeline.quoting import listed, shown
from mfac_compress.pipeline.recipe.schema import ModelSection

CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_MOST_JSON = 50_000_000
_CLASSES = {
    "sequence-classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "image-classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
    "embedding": "MODEL_MAPPING",
}
"""What the library calls its tables of model classes by configuration, by ``model.task``."""
_DEPTHS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "encoder_layers")
"""What configurations call the number of layers."""
_POOLING = "1_Pooling/config.json"
"""Where sentence-transformers writes how its vectors are made."""
_MODULES = "modules.json"
"""Where it writes which modules follow on each other."""
_MADE_HERE = ("Transformer", "Pooling", "Normalize")
"""Those of which a vector is made here; it always gets the length 1."""
_NOT_OURS = ("auto_map", "_attn_implementation", "attn_implementation", "_name_or_path")
"""Keys that could have code or files fetched from elsewhere."""


@dataclass(frozen=True)
class LoadedFolder:
    """A model out of a folder.

    Attributes:
        module: Returns one tensor, as ``model.task`` says.
        content: Hash of the files that were read, and of the library's version.
        version: Of the library.
        heads: Parameters that are no part of the encoder.
    """

    module: nn.Module
    content: str
    version: str
    heads: frozenset[str]


def load_folder(folder: Path, section: ModelSection) -> LoadedFolder:
    """Build the model of a folder.

    Args:
        folder: Has ``config.json`` and the weights.
        section: The recipe's ``model``, which names the task.
    Raises:
        InputError: If a file is missing or damaged, or does not fit the others; if the library is
            not installed or knows no such model, or the folder has no weights for the task.
    """
    _check_section(folder, section)
    raw, values = read_json(folder, CONFIG)
    _check_config(folder, values)
    library = _library()
    config = _config(library, folder, values)
    model_class = _model_class(library, folder, config, section.task)
    tensors, content = _read_weights(folder)
    _check_depth(folder, values, len(tensors))
    module = _built(model_class, folder, config, tensors, section.task)
    if section.task == "embedding":
        heads: frozenset[str] = frozenset()
        pooling = section.pooling or "mean"
        _check_pooling(folder, pooling)
        _check_modules(folder)
        install_pooling(module, pooling)
    else:
        heads = _heads(module)
        install_logits(module)
    version = library.__version__
    digest = hashlib.sha256(raw + content + version.encode()).hexdigest()
    return LoadedFolder(module, digest, version, heads)


def _check_section(folder: Path, section: ModelSection) -> None:
    for key in ("factory", "weights", "prefix", "output"):
        value = getattr(section, key)
        if value is not None:
            raise InputError(
                f"model.{key} must be left out, the folder {folder} has all that makes the model. "
                f"Got {value!r}."
            )
    if section.kwargs:
        raise InputError(
            f"model.kwargs must be left out: what {folder} needs stands in its {CONFIG}. Got "
            f"{section.kwargs}."
        )
    if section.task is None:
        raise InputError(
            f"model.task must be given for a folder of transformers: {' or '.join(_CLASSES)}. Got "
            f"none for {folder}."
        )


def read_json(folder: Path, name: str) -> tuple[bytes, dict[str, Any]]:
    """Read a file of a folder that holds an object of JSON: its bytes, and the object.

    Raises:
        InputError: If it is missing, too large, or holds none.
    """
    content, values = _read(folder, name)
    if not isinstance(values, dict):
        raise InputError(f"{folder / name} must hold an object. Got a {type(values).__name__}.")
    return content, values


def _read(folder: Path, name: str) -> tuple[bytes, Any]:
    """Read a file of JSON: its bytes, and what they hold."""
    path = folder / name
    try:
        size = check_regular(path, "The model")
        content = path.read_bytes() if size <= _MOST_JSON else b""
        return content, json.loads(content)
    except FileNotFoundError as error:
        raise InputError(
            f"The model must be a file, or a folder of transformers with {CONFIG} and {_WEIGHTS}. "
            f"{folder} has no {name}."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} must be a file of JSON below {_MOST_JSON:,} bytes. It cannot be read "
            f"({describe(error)}). Copy or save the folder again."
        ) from error


def _check_config(folder: Path, values: Mapping[str, Any]) -> None:
    if not isinstance(values.get("model_type"), str):
        raise InputError(
            f"{folder / CONFIG} must name its model_type, such as bert. Got "
            f"{shown(values.get('model_type'))}. Save the model with save_pretrained."
        )
    if values.get("quantization_config") is not None:
        raise InputError(
            f"The model of {folder} must have weights in float. Its {CONFIG} has a "
            "quantization_config. Take the model that it was made from."
        )
    if os.path.exists(folder / "adapter_config.json"):
        raise InputError(
            f"The model of {folder} must be a whole one. adapter_config.json is there: merge the "
            "adapter into its model (merge_and_unload), and save that."
        )


def _library() -> Any:
    # Before the import, which reads them. No path or name is given to it below; this is the second
    # lock on the same door.
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            "A folder as the model needs the package transformers. It cannot be imported "
            f"({error}). Install it: pip install 'mfac-compress[transformers]'."
        ) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _config(library: Any, folder: Path, values: Mapping[str, Any]) -> Any:
    kind = values["model_type"]
    try:
        config_class = library.CONFIG_MAPPING[kind]
    except KeyError as error:
        own = " Its own code (auto_map) is never run." if "auto_map" in values else ""
        raise InputError(
            f"{folder / CONFIG} must name a model_type that transformers {library.__version__} "
            f"knows. Got {shown(kind)}.{own} Build the model in a model.factory."
        ) from error
    try:
        config = config_class.from_dict({k: v for k, v in values.items() if k not in _NOT_OURS})
    except Exception as error:
        raise InputError(
            f"{folder / CONFIG} must be a configuration of {kind}. It raised {describe(error)}."
        ) from error
    # Keys and values of earlier tokens would be further outputs.
    config.use_cache = False
    return config


def _model_class(library: Any, folder: Path, config: Any, task: str) -> Any:
    classes = getattr(library, _CLASSES[task])
    try:
        found = classes[type(config)]
    except KeyError as error:
        raise InputError(
            f"model.task must be one that the model is made for. Got {task}, of which transformers "
            f"has none for the model_type {shown(config.model_type)} of {folder}."
        ) from error
    return found[0] if isinstance(found, tuple) else found


def _check_pooling(folder: Path, pooling: str) -> None:
    """Check that vectors are made as in training, where the folder says how.

    Raises:
        InputError: If they are not.
    """
    if not os.path.exists(folder / _POOLING):
        return
    _, values = read_json(folder, _POOLING)
    prefix = "pooling_mode_"
    names = {"cls_token": "cls", "mean_tokens": "mean"}
    of_old = [key.removeprefix(prefix) for key, on in values.items() if on is True]
    trained = values.get("pooling_mode", [names.get(name, name) for name in of_old])
    trained = [trained] if isinstance(trained, str) else trained
    if trained and trained != [pooling]:
        raise InputError(
            f"model.pooling must be that of {folder / _POOLING}, with which the model was trained: "
            f"{', '.join(map(shown, trained))}. Got {pooling}. Where model.pooling has no such "
            "choice, build the model in a model.factory."
        )


def _check_modules(folder: Path) -> None:
    """Check that nothing but the length comes after the pooling, where the folder says what does.

    Raises:
        InputError: If a module follows that is not made here, as one that maps vectors to others.
    """
    if not os.path.exists(folder / _MODULES):
        return
    _, values = _read(folder, _MODULES)
    modules = values if isinstance(values, list) else [values]
    kinds = [each.get("type") if isinstance(each, dict) else each for each in modules]
    others = [each for each in kinds if str(each).rpartition(".")[2] not in _MADE_HERE]
    if others:
        raise InputError(
            f"The vectors of {folder} must be those that its encoder makes with pooling alone. Its "
            f"{_MODULES} has {listed(list(map(shown, others)))}, without which it would be another "
            "model. Build the whole model in a model.factory."
        )


def _check_depth(folder: Path, values: Mapping[str, Any], tensors: int) -> None:
    """Refuse more layers than there are tensors: so many are built before any weight is looked at.

    Raises:
        InputError: If the configuration has more.
    """
    for key in _DEPTHS:
        number = values.get(key)
        if isinstance(number, int) and number > tensors:
            raise InputError(
                f"{folder / CONFIG} must fit the weights, which are {tensors} tensors. Got "
                f"{key}: {number}."
            )


def _read_weights(folder: Path) -> tuple[dict[str, Tensor], bytes]:
    """All tensors by name, and the hashes of their files."""
    names = _weight_files(folder)
    tensors: dict[str, Tensor] = {}
    hashes = hashlib.sha256()
    for name in names:
        path = folder / name
        try:
            check_regular(path, "The model")
            content = path.read_bytes()
        except OSError as error:
            raise InputError(
                f"The model must have its weights in {name}. {folder} has no such file that can be "
                f"read ({error.strerror}). Copy it there."
            ) from error
        hashes.update(hashlib.sha256(content).digest())
        tensors.update(read_checkpoint(path, content, trust_pickle=False))
    return tensors, hashes.digest()


def _weight_files(folder: Path) -> list[str]:
    if (folder / _WEIGHTS).exists() or not (folder / _INDEX).exists():
        _check_saved(folder)
        return [_WEIGHTS]
    _, index = read_json(folder, _INDEX)
    found = index.get("weight_map")
    names = sorted({str(name) for name in found.values()}) if isinstance(found, dict) else []
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(
                f"{folder / _INDEX} must name files of safetensors beside it. Got {shown(name)}."
            )
    if not names:
        raise InputError(f"{folder / _INDEX} must have a weight_map with files. Got none.")
    return names


def _check_saved(folder: Path) -> None:
    if (folder / _WEIGHTS).exists():
        return
    pickled = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    advice = (
        f" {listed(pickled)} may run code when it is read: where you trust it, load it with "
        "transformers and save it with save_pretrained, which writes safetensors."
        if pickled
        else " Copy it there."
    )
    raise InputError(f"The model must have its weights in {folder / _WEIGHTS}. Got none.{advice}")


def _built(
    model_class: Any, folder: Path, config: Any, tensors: Mapping[str, Tensor], task: str
) -> nn.Module:
    # A layer on top that embeddings do not pass through.
    takes_pooler = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    options = {"add_pooling_layer": False} if task == "embedding" and takes_pooler else {}
    try:
        module, found = model_class.from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            dtype=float32,
            # Plain operators: what tracing, gradients of single samples and ONNX have in common.
            attn_implementation="eager",
            output_loading_info=True,
            **options,
        )
    except Exception as error:
        raise InputError(
            f"The weights of {folder} must fit its {CONFIG}. transformers raised {describe(error)}."
        ) from error
    missing = sorted(map(str, found["missing_keys"]))
    if missing:
        # The library would draw them at random.
        raise InputError(
            f"{folder} must have all weights of {model_class.__name__}, the model for model.task "
            f"{task}. It lacks {listed(missing)}. Use another task, or train and save that model."
        )
    deeper = _of_further_layers(module, found["unexpected_keys"])
    if deeper:
        raise InputError(
            f"{folder / CONFIG} must have all layers of which {folder} has weights. It leaves out "
            f"{listed(deeper)}. Take the {CONFIG} with which the model was trained, or save the "
            "smaller model with save_pretrained."
        )
    return module


def _of_further_layers(module: nn.Module, unexpected: Iterable[str]) -> list[str]:
    """Tensors that the model has under another number: those of layers that it does not have.

    Others that it does not have may belong to the head of another task.
    """
    prefix = f"{module.base_model_prefix}."

    def numberless(name: str) -> str:
        return re.sub(r"\.\d+\.", ".*.", name.removeprefix(prefix))

    known = set(map(numberless, module.state_dict()))
    names = sorted(map(str, unexpected))
    return [name for name in names if numberless(name) in known and re.search(r"\.\d+\.", name)]


def _heads(module: nn.Module) -> frozenset[str]:
    """What is on top of the encoder: a layer or two, of few weights, that decide the answer."""
    encoder = f"{module.base_model_prefix}."
    names = [name for name, _ in module.named_parameters()]
    return frozenset(
        name for name in names if not name.startswith(encoder) or ".pooler." in f".{name}"
    )
