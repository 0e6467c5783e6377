"""From recipe to a passing gate for models of several inputs and outputs, and of any length.

Targets are what the dense model says itself: so its accuracy is 1 without any training.
"""

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from mfac_compress.mfac.batch import call
from mfac_compress.pipeline.cli import main
from mfac_compress.pipeline.inputs.callables import resolve_callable

MODELS = """
import collections
import torch
from torch import nn
from torch.nn import functional as F

class ModelOutput(collections.OrderedDict):
    "As Hugging Face's models return: keys are attributes, too."
    __getattr__ = collections.OrderedDict.__getitem__

class Encoder(nn.Module):
    "A layer of BERT over embedded tokens."
    def __init__(self, width=16, heads=2):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(30, width), nn.Embedding(32, width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.heads = heads

    def forward(self, input_ids, attention_mask):
        n, length = input_ids.shape
        x = self.tokens(input_ids) + self.positions.weight[:length]
        q, k, v = (
            part.view(n, length, self.heads, -1).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        mask = attention_mask[:, None, None, :].bool()
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = self.norms[0](x + self.out(attended.transpose(1, 2).reshape(n, length, -1)))
        return self.norms[1](x + self.down(F.gelu(self.up(x))))

class Bert(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.classifier = Encoder(), nn.Linear(16, 3)

    def forward(self, input_ids, attention_mask):
        hidden = self.encoder(input_ids, attention_mask)
        return ModelOutput(logits=self.classifier(hidden[:, 0]), hidden_states=[hidden])

class Tagger(Bert):
    def forward(self, input_ids, attention_mask):
        hidden = self.encoder(input_ids, attention_mask)
        return self.classifier(hidden).movedim(-1, 1)

class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 16), nn.Linear(4, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, query, item):
        return self.head(torch.relu(self.left(query) + self.right(item)))

class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.classes, self.box = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 2)

    def forward(self, x):
        hidden = torch.relu(self.body(x))
        return {"classes": self.classes(hidden), "box": self.box(hidden)}

class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.lstm = nn.Embedding(30, 8), nn.LSTM(8, 16, batch_first=True)
        self.head = nn.Linear(16, 3, bias=False)

    def forward(self, tokens):
        return self.head(self.lstm(self.tokens(tokens))[0][:, -1])

class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.middle = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.head = nn.Conv2d(16, 3, 1)

    def forward(self, image):
        skip = torch.relu(self.down(image))
        inner = torch.relu(self.middle(F.max_pool2d(skip, 2)))
        return self.head(torch.cat([skip, self.up(inner)], 1))
"""

DATA = """
import torch
from safetensors.torch import load_file
from models import *

SIZES = {"calibration": 80, "recovery": 60, "validation": 60}

def model(name):
    net = globals()[name]().eval()
    net.load_state_dict(load_file(FOLDER + "/net.safetensors"))
    return net

@torch.no_grad()
def said(net, *inputs):
    return net(*(part[None] for part in inputs))

def splits(item):
    draw = torch.Generator().manual_seed(1)
    return {name: [item(draw) for _ in range(count)] for name, count in SIZES.items()}

def tokens(draw, length):
    return torch.randint(30, (length,), generator=draw)

def sentences():
    net = model("Bert")
    def item(draw):
        ids = tokens(draw, int(torch.randint(4, 13, (), generator=draw)))
        label = said(net, ids, torch.ones_like(ids)).logits.argmax()
        return {"input_ids": ids.tolist(), "labels": int(label)}
    return splits(item)

def pad(items, length=None):
    length = length or max(len(item["input_ids"]) for item in items)
    ids, mask = torch.zeros(2, len(items), length, dtype=torch.long)
    for row, item in enumerate(items):
        count = len(item["input_ids"])
        ids[row, :count], mask[row, :count] = torch.tensor(item["input_ids"]), 1
    labels = torch.tensor([item["labels"] for item in items])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}

def tagged():
    net = model("Tagger")
    def item(draw):
        ids = tokens(draw, int(torch.randint(4, 13, (), generator=draw)))
        tags = said(net, ids, torch.ones_like(ids)).argmax(1)[0]
        return {"input_ids": ids.tolist(), "tags": tags.tolist()}
    return splits(item)

def pad_tags_of_a_batch(items):
    return pad_tags(items, max(len(item["tags"]) for item in items))

def pad_tags(items, length=12):
    tags = torch.full((len(items), length), -100)
    for row, item in enumerate(items):
        tags[row, : len(item["tags"])] = torch.tensor(item["tags"])
    batch = pad([{**item, "labels": 0} for item in items], length)
    del batch["labels"]
    return {**batch, "tags": tags}

def pairs():
    net = model("Towers")
    def item(draw):
        inputs = torch.randn(6, generator=draw), torch.randn(4, generator=draw)
        return inputs, said(net, *inputs).argmax()
    return splits(item)

def boxes():
    net = model("Detector")
    def item(draw):
        x = torch.randn(6, generator=draw)
        found = said(net, x)
        return x, {"class": found["classes"].argmax(), "box": found["box"][0]}
    return splits(item)

def pictures():
    net = model("UNet")
    def item(draw):
        image = torch.randn(1, 8, 6, generator=draw)
        classes = said(net, image).argmax(1)[0]
        classes[:, 0] = -100
        return image, classes
    return splits(item)
"""

TASK = """
from torch.nn import functional as F

def loss(outputs, targets):
    box = F.mse_loss(outputs["box"], targets["box"])
    return F.cross_entropy(outputs["classes"], targets["class"]) + box

def found(outputs, targets):
    near = (outputs["box"] - targets["box"]).abs().amax(1) < 1
    return (near & (outputs["classes"].argmax(1) == targets["class"])).float()
"""


@pytest.fixture
def passed(tmp_path):
    """Run a recipe, which must pass, and return its folder and the pruned model."""

    def run(name, *, arrays=None, refused=None, **recipe):
        (tmp_path / "models.py").write_text(MODELS)
        # The data module imports the models as a file beside it.
        data = DATA.replace("from models import *", MODELS)
        (tmp_path / "data.py").write_text(f"FOLDER = {str(tmp_path)!r}\n{data}")
        (tmp_path / "task.py").write_text(TASK)
        torch.manual_seed(0)
        net = resolve_callable(f"models.py:{name}", key="model", folder=tmp_path)().eval()
        save_file(net.state_dict(), tmp_path / "net.safetensors")
        if arrays:
            np.savez(tmp_path / "data.npz", **arrays(net))
        model = {"factory": f"models.py:{name}", **recipe.pop("model", {})}
        export = {"sparse_kernels": "off", **recipe.pop("export", {})}
        gates = {"max_metric_drop": 0.6, "min_sparsity": 0.3, "max_parity_error": 1e-4}
        written = {
            "model": model,
            "calibrate": {"num_gradients": 24, "samples_per_gradient": 2, "gradients": "loop"},
            "fisher": {"block_size": 16},
            "prune": {"sparsity": 0.3},
            "recover": {"epochs": 1, "lr": 1e-4, "batch_size": 16},
            "export": export,
            "validate": {"latency": None, "gates": gates, "batch_size": 16},
            **recipe,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(written))
        command = [str(path), str(tmp_path / "net.safetensors"), "-o", str(tmp_path / "out"), "-q"]
        result = CliRunner().invoke(main, command)
        if refused:
            assert result.exit_code == 2, result.output
            assert refused in " ".join(result.output.split())
            assert not (tmp_path / "out").exists()
            return None
        assert result.exit_code == 0, result.output
        net.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
        return tmp_path / "out" / "model.onnx", net

    return run


def axes(values):
    return {value.name: value.shape for value in values}


def compare(session, net, inputs, pick=lambda outputs: outputs):
    """Compare the file with the pruned model on inputs of another batch and length."""
    with torch.no_grad():
        expected = pick(call(net, inputs))
    named = inputs if isinstance(inputs, dict) else None
    if named is None:
        names = [value.name for value in session.get_inputs()]
        named = dict(zip(names, inputs if isinstance(inputs, tuple) else (inputs,), strict=True))
    found = session.run(None, {name: tensor.numpy() for name, tensor in named.items()})
    for one, other in zip(
        found, expected if isinstance(expected, tuple) else (expected,), strict=True
    ):
        assert np.allclose(one, other, atol=1e-5)


def test_a_bert_of_padded_dicts_keeps_its_inputs_and_any_length(passed):
    path, net = passed(
        "Bert",
        model={"output": "logits"},
        data={"factory": "data.py:sentences", "collate": "data.py:pad"},
        export={
            "dynamic_axes": {name: {1: "sequence"} for name in ("input_ids", "attention_mask")}
        },
    )
    session = onnxruntime.InferenceSession(path)
    for name in ("input_ids", "attention_mask"):
        assert axes(session.get_inputs())[name] == ["batch", "sequence"]
    ids = torch.randint(30, (3, 19))
    mask = (torch.arange(19) < torch.tensor([[19], [7], [1]])).long()
    inputs = {"input_ids": ids, "attention_mask": mask}
    compare(session, net, inputs, lambda outputs: outputs["logits"])


def test_a_tagger_of_dicts_passes_over_ignored_targets(passed):
    path, net = passed(
        "Tagger",
        task={"target": "tags"},
        data={"factory": "data.py:tagged", "collate": "data.py:pad_tags"},
    )
    inputs = {"input_ids": torch.randint(30, (5, 12)), "attention_mask": torch.ones(5, 12).long()}
    compare(onnxruntime.InferenceSession(path), net, inputs)


def test_outputs_of_padded_batches_that_cannot_be_joined_are_refused_before_the_work(passed):
    passed(
        "Tagger",
        task={"target": "tags"},
        data={"factory": "data.py:tagged", "collate": "data.py:pad_tags_of_a_batch"},
        refused="Pad all samples to one length in data.collate",
    )


def test_a_model_of_two_positional_inputs(passed):
    path, net = passed("Towers", data={"factory": "data.py:pairs"})
    session = onnxruntime.InferenceSession(path)
    assert axes(session.get_inputs()) == {"query": ["batch", 6], "item": ["batch", 4]}
    compare(session, net, (torch.randn(5, 6), torch.randn(5, 4)))


def test_a_model_of_two_outputs_with_a_loss_and_a_metric_of_both(passed):
    path, net = passed(
        "Detector",
        data={"factory": "data.py:boxes"},
        task={"loss": "task.py:loss", "metric": "task.py:found", "range": [0, 1]},
    )
    session = onnxruntime.InferenceSession(path)
    assert axes(session.get_outputs()) == {"classes": ["batch", 3], "box": ["batch", 2]}
    compare(session, net, torch.randn(5, 6), lambda outputs: tuple(outputs.values()))


def test_an_lstm_of_token_numbers_of_any_length(passed):
    def arrays(net):
        x = np.random.default_rng(0).integers(0, 30, (200, 7))
        with torch.no_grad():
            return {"x": x, "y": net(torch.from_numpy(x)).argmax(1).numpy()}

    rows = {"calibration": [0, 80], "recovery": [80, 140], "validation": [140, 200]}
    splits = {name: {"path": "data.npz", "rows": range_} for name, range_ in rows.items()}
    path, net = passed(
        "Recurrent",
        arrays=arrays,
        data={"source": "arrays", "splits": splits},
        export={"input_name": "tokens", "dynamic_axes": {"tokens": {1: "time"}}},
    )
    session = onnxruntime.InferenceSession(path)
    assert axes(session.get_inputs()) == {"tokens": ["batch", "time"]}
    compare(session, net, torch.randint(30, (3, 11)))


def test_a_unet_of_any_height_and_width(passed):
    path, net = passed(
        "UNet",
        data={"factory": "data.py:pictures"},
        export={"input_name": "image", "dynamic_axes": {"image": {2: "height", 3: "width"}}},
    )
    session = onnxruntime.InferenceSession(path)
    assert axes(session.get_inputs()) == {"image": ["batch", 1, "height", "width"]}
    compare(session, net, torch.randn(3, 1, 12, 10))
