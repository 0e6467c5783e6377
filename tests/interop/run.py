"""Compare with SparseML 1.8 itself: ``make interop``.

Both parsers on the same recipes, both inverses on the same gradients, a model that SparseML pruned
through our export, audit and gates, and the CPU time that both take. Writes ``build/interop.md``,
and ends with 1 where something differs, with 0 and a reason where the peer cannot be built.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file

from mfac_compress.mfac import fisher_of, invert
from mfac_compress.pipeline.compression import compress
from mfac_compress.pipeline.recipe.sparseml.catalogue import checked
from mfac_compress.pipeline.recipe.sparseml.document import front_matter, read_modifiers

sys.path.insert(0, str(Path(__file__).parent))
from environment import ROOT, UnavailableError, ask, peer_python

PUBLISHED = ROOT / "tests" / "pipeline" / "recipe" / "sparseml" / "published"
DIGITS = ROOT / "recipes" / "models" / "digits.safetensors"
NOT_IN_1_8 = {
    "mfac-before-1.0.yaml": "log_types and mfac_options are gone",
    "mfac-growing-gradients.yaml": "available_gpus is gone",
    "magnitude-misspelt.yaml": "the documentation's own misspelling",
}
"""Published syntax that the last release does not read any more; ours does."""
TOLERANCE = 1e-3
"""Largest relative difference of diagonals and products: the peer's recursion is in float32."""


def compare_parsers(python: Path, folder: Path) -> list[str]:
    """Every recipe must have the same modifiers with the same values."""
    paths = sorted(PUBLISHED.iterdir())
    (folder / "recipes.json").write_text(json.dumps([str(path) for path in paths]))
    ask(python, "parse", folder)
    theirs = json.loads((folder / "parsed.json").read_text())
    lines = []
    for path in paths:
        found = theirs[str(path)]
        if isinstance(found, dict):
            assert path.name in NOT_IN_1_8, f"{path.name}: {found['error']}"
            lines.append(f"| {path.name} | not read by 1.8: {NOT_IN_1_8[path.name]} |")
            continue
        ours = _modifiers(path)
        assert len(ours) == len(found), path.name
        count = sum(_compare(path.name, own, found) for own in ours)
        lines.append(f"| {path.name} | {len(ours)} modifiers, {count} values alike |")
    return ["| recipe | |", "|---|---|", *lines]


def _modifiers(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf-8")
    modifiers, document = read_modifiers(front_matter(text) if path.suffix == ".md" else text)
    assert not document.issues
    return [checked(modifier)[0] for modifier in modifiers]


def _compare(name: str, own: Any, found: list[dict[str, Any]]) -> int:
    """Find the modifier among the peer's that has the same values, and count these."""
    alike = [other for other in found if other["name"] == own.name]
    assert alike, f"{name}: SparseML reads no {own.name}"
    wrong = []
    for other in alike:
        keys = own.values.keys() & other["values"].keys()
        assert len(keys) >= len(own.lines) - len({"log_types"} & own.lines.keys()), (name, own.name)
        wrong = [
            (key, own.values[key], other["values"][key])
            for key in keys
            if _plain(own.values[key]) != _plain(other["values"][key])
            and not _chosen_there(own, key)
        ]
        if not wrong:
            return len(keys)
    raise AssertionError(f"{name}: {own.name} differs in {wrong}")


def _chosen_there(own: Any, key: str) -> bool:
    """Whether SparseML fills in what the recipe leaves out: devices, names, parts of schemes."""
    filled = ("available_devices", "model_fuse_fn_name", "teacher_layer_names")
    return key == "scheme" or (key not in own.lines and key in filled)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(part) for key, part in value.items()} or None
    if isinstance(value, list | tuple):
        parts = [_plain(part) for part in value]
        return parts[0] if len(parts) == 1 else parts
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    return float(value) if isinstance(value, int | float) else value


def compare_inverses(python: Path, folder: Path, *, large: bool) -> list[str]:
    """Diagonals and products must be those of the same gradients; the time is said."""
    torch.manual_seed(0)
    cases = {
        "full, d = 3,000, m = 64": _case(64, 3000, None, keep=True),
        "blocks of 50, d = 3,000, m = 64": _case(64, 3000, 50, keep=True),
        "blocks of 64, d = 3,000 (the last is shorter), m = 256": _case(256, 3000, 64, keep=True),
    }
    if large:
        cases |= {
            "full, d = 131,072, m = 512": _case(512, 131_072, None),
            "blocks of 128, d = 131,072, m = 512": _case(512, 131_072, 128),
        }
    torch.save(cases, folder / "gradients.pt")
    own: dict[str, dict[str, Any]] = {name: _inverted(case) for name, case in cases.items()}
    ask(python, "inverse", folder)
    again = {name: _inverted(case)["seconds"] for name, case in cases.items()}
    lines = ["| gradients | class | diagonal | product | seconds | ours |", f"|{'---|' * 6}"]
    for key, theirs in torch.load(folder / "inverses.pt", weights_only=True).items():
        name, kind = key.split("/")
        if cases[name]["keep"]:
            parts = ("diagonal", "product")
            differences = [_differ(own[name][part], theirs[part]) for part in parts]
            assert max(differences) < TOLERANCE, (key, differences)
            said = [*(f"{difference:.1e}" for difference in differences), "", ""]
        else:
            ours = min(own[name]["seconds"], again[name])
            said = ["", "", f"{theirs['seconds']:.2f}", f"{ours:.2f}"]
        lines.append(f"| {name} | {kind} | {' | '.join(said)} |")
    return lines


def _case(m: int, d: int, block: int | None, *, keep: bool = False) -> dict[str, Any]:
    tensors = {"gradients": torch.randn(m, d), "x": torch.randn(d)}
    return {**tensors, "block": block, "damping": 1e-3, "keep": keep}


def _inverted(case: dict[str, Any]) -> dict[str, Any]:
    begin = time.process_time()
    inverse = invert(fisher_of(case["gradients"], case["block"]), case["damping"])
    diagonal = inverse.diagonal()
    seconds = time.process_time() - begin
    product = inverse.ihvp(case["x"]) if case["keep"] else None
    return {"diagonal": diagonal, "product": product, "seconds": seconds}


def _differ(own: torch.Tensor, theirs: torch.Tensor) -> float:
    own, theirs = own.double(), theirs.double()
    return float((own - theirs).norm() / own.norm())


RECIPE = """\
pruning_modifiers:
  - !OBSPruningModifier
    params: ["re:3.weight", "re:6.weight", "re:10.weight", "re:15.weight"]
    init_sparsity: 0.0
    final_sparsity: 0.7
    start_epoch: 0.0
    end_epoch: 1.0
    update_frequency: 1.0
    global_sparsity: True
    num_grads: 128
    damp: 1e-5
    fisher_block_size: 64
    grad_sampler_kwargs:
      batch_size: 4
"""


def compare_models(python: Path, folder: Path) -> list[str]:
    """A model that SparseML pruned must pass audit and gates, and its recipe must run here."""
    digits = yaml.safe_load((ROOT / "recipes" / "digits.yaml").read_text(encoding="utf-8"))
    with np.load(ROOT / "pipeline" / "inputs" / "digits.npz") as data:
        x = data["images"][:640, None].astype(np.float32) / 16
        np.savez(folder / "data.npz", x=x, y=data["targets"][:640].astype(np.int64))
    dense = load_file(DIGITS)
    torch.save(dense, folder / "dense.pt")
    factory = ROOT / "recipes" / "models" / "digits_convnet.py"
    (folder / "prune.json").write_text(json.dumps({"factory": str(factory)}))
    (folder / "recipe.yaml").write_text(RECIPE)
    ask(python, "prune", folder)
    pruned = torch.load(folder / "pruned.pt", weights_only=True)
    pruned = {name.removeprefix("module."): tensor for name, tensor in pruned.items()}
    names = [f"{layer}.weight" for layer in (3, 6, 10, 15)]
    masks = {name: pruned[name] != 0 for name in names}
    save_file(masks, folder / "masks.safetensors")
    save_file({name: pruned[name].contiguous() for name in dense}, folder / "pruned.safetensors")

    common = {key: digits[key] for key in ("run", "model", "data", "task")}
    common["folder"] = str(ROOT / "recipes")
    gates = {"min_sparsity": 0.6, "max_parity_error": 1e-3}
    common["validate"] = {"batch_size": 256, "latency": None, "gates": gates}
    files = {"masks": "masks.safetensors", "weights": "pruned.safetensors"}
    given = {key: str(folder / name) for key, name in files.items()}
    (folder / "given.yaml").write_text(yaml.safe_dump({**common, "prune": given}))
    theirs = compress(folder / "given.yaml", DIGITS, folder / "theirs")
    sets = [f"{key}={json.dumps(value)}" for key, value in common.items()]
    ours = compress(folder / "recipe.yaml", DIGITS, folder / "ours", overrides=sets)
    lines = ["| pruned by | sparsity | accuracy | verdict |", "|---|---|---|---|"]
    for who, report in (("SparseML", theirs), ("mfac-compress", ours)):
        assert report.verdict == "pass", f"{who}: {report.verdict}"
        judged = report.variants["sparse"]
        assert all(tensor.intact for tensor in judged.audit), who
        lines.append(f"| {who} | {judged.sparsity:.2%} | {judged.metric.value:.2%} | pass |")
    return lines


def main() -> int:
    """Run all comparisons; returns the exit code."""
    try:
        python = peer_python()
    except UnavailableError as error:
        print(f"interop skipped: the environment of SparseML cannot be built: {error}")
        return 0
    torch.set_num_threads(1)
    parts: dict[str, Callable[[Path, Path], list[str]]] = {
        "Parsers": compare_parsers,
        "Inverses": lambda peer, folder: compare_inverses(peer, folder, large=True),
        "Models": compare_models,
    }
    written, failed = [], False
    for title, compare in parts.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                lines = compare(python, Path(folder))
            except AssertionError as error:
                lines, failed = [f"DIFFERS: {error}"], True
        written += [f"## {title}", "", *lines, ""]
        print("\n".join(written[-len(lines) - 3 :]), flush=True)
    report = ROOT / "build" / "interop.md"
    report.parent.mkdir(exist_ok=True)
    report.write_text("\n".join(["# Beside SparseML 1.8", "", *written]), encoding="utf-8")
    print(f"written: {report}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
