"""A training loop of the user's own: trusted to run, and looked at afterwards."""

import copy
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

from mfac_compress.pipeline.errors import InputError, StageError
from mfac_compress.pipeline.inputs.augment import ImageChanges
from mfac_compress.pipeline.inputs.code_sources import USER_FILE
from mfac_compress.pipeline.inputs.load import load_inputs
from mfac_compress.pipeline.inputs.training_loop import TrainingLoop
from mfac_compress.pipeline.inputs.training_samples import TrainingSamples
from mfac_compress.pipeline.progress import Progress
from mfac_compress.pipeline.ranks import Ranks
from mfac_compress.pipeline.recipe.file import load_recipe
from mfac_compress.pipeline.recipe.schema import RecoverSection
from mfac_compress.pipeline.run.stage import Job
from mfac_compress.pipeline.run.state import State
from mfac_compress.pipeline.stages import export, own_loop

FACTORY = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(6, 16), nn.BatchNorm1d(16)
        self.twin = nn.Linear(16, 16)
        self.again = nn.Linear(16, 16)
        self.again.bias = self.twin.bias
        self.last = nn.Linear(16, 3)
        self.last.bias.requires_grad_(False)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        return self.last(self.again(self.twin(x).relu()).relu())
"""


@pytest.fixture(scope="module")
def inputs(module_project):
    (module_project.folder / "net.py").write_text(FACTORY)
    names = {}
    exec(FACTORY, names)
    torch.manual_seed(0)
    torch.save(names["Net"]().state_dict(), module_project.folder / "net.pt")
    module_project.recipe["model"] = {"factory": "net.py:Net"}
    recipe = load_recipe(module_project.write_recipe())
    return load_inputs(recipe, module_project.folder / "net.pt")


@pytest.fixture
def recover(inputs, tmp_path):
    """Run a loop on the model without the smaller half of two layers; gives both states."""
    module = inputs.model.copy()
    names = ("first.weight", "last.weight")
    masks = {n: p.abs() > p.abs().median() for n in names for p in [module.get_parameter(n).data]}
    for name, mask in masks.items():
        module.get_parameter(name).data.masked_fill_(~mask, 0)
    for folder in ("before", "after"):
        (tmp_path / folder).mkdir()
    State.of(module, masks).save(tmp_path / "before")

    def run(function, progress=None):
        before = {"state": SimpleNamespace(folder=tmp_path / "before")}
        facts = own_loop.recover_by_loop(
            Job(tmp_path / "after", before, Ranks(), progress or Progress(), None),
            model=inputs.model,
            loop=TrainingLoop("train.py:loop", function),
            section=RecoverSection(loop="train.py:loop", batchnorm="never"),
            samples=TrainingSamples(inputs.data.recovery),
            calibration=inputs.calibration,
            augment=ImageChanges(),
            seed=0,
        )
        return facts, State.load(tmp_path / "before"), State.load(tmp_path / "after")

    return run


def _train(model, splits, handle, attach=True, **options):
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.01, **options)
    if attach:
        handle.attach(optimizer)
    for inputs, targets in splits.recovery.batches(50, shuffle=True, augment=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


def test_the_loop_trains_and_the_masks_hold(recover):
    _, before, after = recover(_train)
    for name, mask in before.masks.items():
        assert torch.equal(after.masks[name], mask)
        assert not after.tensors[name][~mask].any()
        assert (after.tensors[name] != before.tensors[name])[mask].any()
    assert torch.equal(after.tensors["last.bias"], before.tensors["last.bias"])


def test_it_gives_the_same_bytes_again_whatever_ran_before(recover):
    first = recover(_train)[2].tensors
    torch.manual_seed(7)
    again = recover(_train)[2].tensors
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_it_is_given_recovery_and_held_out_samples_and_no_others(recover, inputs):
    def look(model, splits, handle):
        assert model.training
        assert splits._fields == ("recovery", "holdout")
        assert len(splits.recovery) == len(inputs.data.recovery)
        assert len(splits.holdout) == len(inputs.calibration.draws.holdout)
        held_out = inputs.data.calibration.raw(inputs.calibration.draws.holdout.tolist()).inputs
        ((drawn, _),) = splits.holdout.batches(1000)
        assert torch.equal(drawn, held_out)
        x, y = next(iter(DataLoader(splits.recovery, batch_size=4)))
        assert torch.equal(x, inputs.data.recovery.raw(range(4)).inputs)
        assert y.shape == (4,)
        orders = [
            next(splits.recovery.batches(1000, shuffle=True)).inputs.flatten().tolist()
            for _ in range(2)
        ]
        assert orders[0] != orders[1]
        assert sorted(orders[0]) == sorted(orders[1])

    recover(look)


def _revives(model, splits, handle):
    _train(model, splits, handle, attach=False)


def _revives_after_the_last_step(model, splits, handle):
    _train(model, splits, handle)
    model.last.weight.data += 1


def _changes_the_masks_too(model, splits, handle):
    for mask in handle._masks.values():
        mask.fill_(True)
    _train(model, splits, handle)


def _replaces_a_parameter(model, splits, handle):
    model.first.weight = nn.Parameter(torch.ones(16, 6))


def _replaces_a_layer(model, splits, handle):
    model.last = nn.Linear(16, 4)


def _adds_a_layer(model, splits, handle):
    model.extra = nn.Linear(2, 2)


def _takes_a_layer_away(model, splits, handle):
    del model.norm


def _reparametrises(model, splits, handle):
    nn.utils.parametrizations.weight_norm(model.twin)


def _tears_twins(model, splits, handle):
    model.again.bias = nn.Parameter(model.twin.bias.detach() + 1)


def _trains_a_frozen_weight(model, splits, handle):
    model.last.bias.requires_grad_(True)
    _train(model, splits, handle)


def _halves(model, splits, handle):
    model.half()


def _diverges(model, splits, handle):
    model.twin.weight.data[0, 0] = float("nan")


def _breaks_a_statistic(model, splits, handle):
    model.norm.running_var[3] = float("inf")


@pytest.mark.parametrize(
    ("loop", "message"),
    [
        (_revives, r"removed weights must be zero .* in first\.weight, \d+ in last\.weight"),
        (_revives_after_the_last_step, r"Got 24 in last\.weight that are not.*handle\.attach"),
        (_changes_the_masks_too, r"removed weights must be zero .* in first\.weight"),
        (_replaces_a_parameter, r"Got 48 in first\.weight"),
        (_replaces_a_layer, r"last\.weight: float32 \[4, 16\] for float32 \[3, 16\]"),
        (_adds_a_layer, r"Got extra\.bias, extra\.weight new\. Take away"),
        (_takes_a_layer_away, r"norm\.weight gone"),
        (_reparametrises, r"new and twin\.weight gone"),
        (_tears_twins, r"other values in again\.bias than in twin\.bias"),
        (_trains_a_frozen_weight, r"frozen .* Got others in last\.bias"),
        (_halves, r"float16"),
        (_diverges, r"finite .* in twin\.weight"),
        (_breaks_a_statistic, r"finite .* in norm\.running_var"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_the_pruned_model_is_refused_by_its_tensor(recover, loop, message):
    with pytest.raises(StageError, match=message) as refusal:
        recover(loop)
    assert refusal.value.stage == "recover"


def _exits(model, splits, handle):
    sys.exit(0)


def _raises(model, splits, handle):
    raise ValueError("no such scheduler")


def _returns_a_copy(model, splits, handle):
    trained = copy.deepcopy(model)
    _train(trained, splits, handle, attach=False)
    return trained


@pytest.mark.parametrize(
    ("loop", "message"),
    [
        (_exits, "raised SystemExit: 0"),
        (_raises, "raised ValueError: no such scheduler"),
        (_returns_a_copy, "returned a Net, which would not be used"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_no_training_loop_is_the_users_error(recover, loop, message):
    with pytest.raises(InputError, match=message):
        recover(loop)


def test_a_loop_that_changes_nothing_is_said(recover):
    said = []
    progress = SimpleNamespace(warn=said.append)
    recover(lambda model, splits, handle: None, progress)
    assert "has changed no weight" in said[0]
    recover(_train, progress)
    assert len(said) == 1


def test_what_it_sets_for_the_process_and_leaves_behind_does_not_last(recover):
    threads = torch.get_num_threads()

    def loop(model, splits, handle):
        _train(model, splits, handle)
        torch.set_grad_enabled(False)
        torch.set_num_threads(threads + 1)
        torch.set_default_dtype(torch.float64)
        model.forward = lambda x: x * float("nan")
        model.last.register_forward_hook(lambda *_: sys.exit(0))

    expected = recover(_train)[2].tensors
    found = recover(loop)[2].tensors
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == threads
    assert torch.get_default_dtype() == torch.float32


def test_masked_weights_that_are_negative_zeros_become_positive_ones(recover):
    def loop(model, splits, handle):
        model.first.weight.data[model.first.weight.data == 0] = -0.0

    _, before, after = recover(loop)
    assert not after.tensors["first.weight"][~before.masks["first.weight"]].signbit().any()


LOOP = """
import torch
from helper import STEPS

def loop(model, splits, handle):
    import late
    optimizer = torch.optim.SGD(model.parameters(), lr=late.LR)
    handle.attach(optimizer)
    for (x, y), _ in zip(splits.recovery.batches(32, shuffle=True), range(STEPS)):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
"""


@pytest.fixture
def with_loop(project, monkeypatch):
    """A project whose recipe names a loop with helpers, one of which is imported late."""
    monkeypatch.syspath_prepend(project.folder)
    for name, text in {"helper": "STEPS = 3", "late": "LR = 0.1", "train": LOOP}.items():
        (project.folder / f"{name}.py").write_text(text)
    project.recipe["prune"] = {"method": "magnitude", "sparsity": 0.5}
    project.recipe["recover"] = {"loop": "train.py:loop"}
    yield project
    _forget_the_loop()


def _forget_the_loop():
    """As a new process has not imported it."""
    for name in [*sys.modules]:
        if name in ("helper", "late") or name.startswith(f"{USER_FILE}train_"):
            del sys.modules[name]


def _run_anew(project):
    _forget_the_loop()
    return project.run("-q")


def test_the_code_of_the_loop_and_its_helpers_is_in_the_key(with_loop, monkeypatch):
    made, recover = [], own_loop.recover_by_loop

    def note(job, **given):
        made.append(job)
        return recover(job, **given)

    def stop(job, **_):
        raise OSError("far enough")

    monkeypatch.setattr(own_loop, "recover_by_loop", note)
    monkeypatch.setattr(export, "export", stop)
    for _ in range(2):
        assert "stage export: OSError: far enough" in _run_anew(with_loop).output
        assert len(made) == 1
    for edited in ("train", "helper", "late"):
        made.clear()
        file = with_loop.folder / f"{edited}.py"
        file.write_text(file.read_text() + "\n# another\n")
        assert "stage export: OSError: far enough" in _run_anew(with_loop).output
        assert len(made) == 1, edited


def test_a_run_ships_what_the_loop_has_trained(with_loop):
    result = _run_anew(with_loop)
    assert result.exit_code == 0, result.output
    shipped, masks = (
        load_file(with_loop.output / f"{name}.safetensors") for name in ("model", "masks")
    )
    before = load_file(with_loop.model)
    for name, mask in masks.items():
        assert not shipped[name][~mask].any()
        assert (shipped[name] != before[name])[mask].any()
    report = json.loads((with_loop.output / "report.json").read_text())
    assert report["recovery"]["loop"] == "train.py:loop"
    said = "recover: by recover.loop train.py:loop."
    assert said in (with_loop.output / "report.md").read_text()
    names = {path.rpartition("/")[2] for path in report["code"]["files"]}
    assert {"train.py", "helper.py", "late.py"} <= names


def test_the_dry_run_says_who_trains(with_loop):
    result = with_loop.run("--dry-run")
    assert "recovery: by recover.loop train.py:loop, on 200 recovery samples" in result.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def loop(model, splits):\n    pass\n", "must be a function of (model, splits, handle)"),
        ("raise SystemExit(0)\n", "raised SystemExit"),
        ("def other(model, splits, handle):\n    pass\n", "has no 'loop'"),
    ],
)
def test_the_dry_run_finds_what_is_no_loop(with_loop, text, message):
    (with_loop.folder / "train.py").write_text(text)
    result = with_loop.run("--dry-run")
    assert result.exit_code == 2
    assert "recover.loop" in result.output
    assert message in result.output
