"""Folders of transformers as the model: what is loaded, what is refused, and that nothing runs."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from mfac_compress.pipeline.errors import InputError
from mfac_compress.pipeline.inputs.layers import match_targets
from mfac_compress.pipeline.inputs.model_file import load_model
from mfac_compress.pipeline.recipe.schema import ModelSection, Recipe

IDS = torch.tensor([[2, 7, 9, 11, 3], [2, 5, 3, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@pytest.fixture
def folder(tiny_bert, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(tiny_bert, tmp_path / "bert")


def _load(folder, task="embedding", **section):
    return load_model(folder, ModelSection(task=task, **section), folder=folder)


def _edit(folder, name="config.json", **changes):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _reference(folder, name):
    """The model as the library itself loads it."""
    import transformers

    return getattr(transformers, name).from_pretrained(folder).eval()


def test_a_classifier_computes_what_the_library_does(tiny_bert):
    model = _load(tiny_bert, "sequence-classification")
    expected = _reference(tiny_bert, "AutoModelForSequenceClassification")
    with torch.no_grad():
        torch.testing.assert_close(
            model.module(input_ids=IDS, attention_mask=MASK),
            expected(input_ids=IDS, attention_mask=MASK).logits,
        )


def test_an_embedding_is_the_mean_without_padding_of_length_one(tiny_bert):
    encoder = _reference(tiny_bert, "AutoModel")
    with torch.no_grad():
        found = _load(tiny_bert).module(input_ids=IDS, attention_mask=MASK)
        hidden = encoder(input_ids=IDS, attention_mask=MASK).last_hidden_state
        mean = torch.stack([hidden[0].mean(0), hidden[1, :3].mean(0)])
        torch.testing.assert_close(found, F.normalize(mean))
        first = _load(tiny_bert, pooling="cls").module(input_ids=IDS, attention_mask=MASK)
    torch.testing.assert_close(first, F.normalize(hidden[:, 0]))


def test_an_embedding_without_a_mask_is_refused(tiny_bert):
    with pytest.raises(InputError, match="needs attention_mask among the inputs"):
        _load(tiny_bert).module(input_ids=IDS)


def test_parameters_keep_the_names_of_the_folder(tiny_bert):
    saved = {*load_file(tiny_bert / "model.safetensors")}
    classifier = _load(tiny_bert, "sequence-classification").module
    assert {name for name, _ in classifier.named_parameters()} == saved


def test_a_lone_output_is_a_score_for_each_sample(folder):
    _edit(folder, id2label={"0": "score"}, label2id={"score": 0})
    weights = load_file(folder / "model.safetensors")
    cut = {k: v[:1].clone() if k.startswith("classifier.") else v for k, v in weights.items()}
    save_file(cut, folder / "model.safetensors")
    model = _load(folder, "sequence-classification")
    assert model.module(input_ids=IDS, attention_mask=MASK).shape == (2,)


def test_a_classifier_of_images_takes_them_by_position(tiny_bert, tmp_path):
    import transformers

    config = transformers.ViTConfig(
        image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, num_labels=3,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    model = _load(tmp_path, "image-classification")
    assert model.module(torch.zeros(2, 3, 8, 8)).shape == (2, 3)
    assert model.heads == {"classifier.weight", "classifier.bias"}
    with pytest.raises(InputError, match=r"model.task must be one that the model is made for"):
        _load(tmp_path, "sequence-classification")


def test_shards_and_half_precision_give_the_same_model(folder):
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: weights[name].half() for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    whole = _load(folder, "sequence-classification")
    (folder / "model.safetensors").unlink()
    sharded = _load(folder, "sequence-classification")
    for name, weight in sharded.module.named_parameters():
        assert torch.equal(weight, weights[name].half().float())
    assert whole.digest != sharded.digest


def test_the_digest_follows_the_configuration(folder):
    before = _load(folder).digest
    assert _load(folder).digest == before
    _edit(folder, layer_norm_eps=1e-5)
    assert _load(folder).digest != before


def test_embeddings_and_heads_are_left_out_unless_named(tiny_bert):
    model = _load(tiny_bert, "sequence-classification")

    def matched(**prune):
        recipe = Recipe(data={"source": "digits"}, prune={"sparsity": 0.5, **prune})
        return match_targets(model.module, recipe, model.heads)

    targets = matched()
    assert all(".encoder." in name for name in targets.shapes)
    assert targets.left_out["classifier.weight"] == (
        "of the head, which only a pattern of its own includes"
    )
    assert "Embedding" in targets.left_out["bert.embeddings.word_embeddings.weight"]
    assert "classifier.weight" in matched(include=["*", "classifier"]).shapes


@pytest.mark.parametrize("key", ["auto_map", "_attn_implementation"])
def test_no_code_of_the_folder_runs(folder, key, monkeypatch):
    (folder / "evil.py").write_text("import pathlib\npathlib.Path('ran').touch()\nNet = None\n")
    values = {"auto_map": {"AutoModel": "evil.Net", "AutoConfig": "evil.Net"}}
    _edit(folder, **{key: values.get(key, "someone/their-kernels")})
    monkeypatch.chdir(folder)
    before = {*sys.modules}
    _load(folder)
    assert not (folder / "ran").exists()
    assert not [name for name in {*sys.modules} - before if "evil" in name]


CONFIGS = {
    "no model_type": ({"model_type": None}, "must name its model_type"),
    "unknown": ({"model_type": "x9", "auto_map": {}}, r"Got x9. Its own code \(auto_map\) is nev"),
    "quantised": ({"quantization_config": {"bits": 4}}, "must have weights in float"),
    "window": ({"max_window_layers": 10**9, "quantization_config": {}}, "weights in float"),
    "too deep": ({"num_hidden_layers": 10**9}, "must fit the weights, which are 25 tensors"),
    "other width": ({"hidden_size": 32}, "must fit its config.json"),
    "senseless": ({"hidden_size": "many"}, "must"),
    "no such task": ({"model_type": "clip"}, r"model.task must be one that the model is made for"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_configuration_that_does_not_fit_is_refused(folder, case):
    changes, message = CONFIGS[case]
    _edit(folder, **changes)
    with pytest.raises(InputError, match=message):
        _load(folder, "sequence-classification" if case == "no such task" else "embedding")


def test_weights_that_would_be_drawn_at_random_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, folder / "model.safetensors")
    assert _load(folder)
    with pytest.raises(InputError, match=r"It lacks classifier.weight"):
        _load(folder, "sequence-classification")


def test_pickles_are_named_and_not_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model.bin may run code .* save_pretrained"):
        _load(folder)


@pytest.mark.parametrize("name", ["../outside.safetensors", "weights.bin"])
def test_an_index_names_safetensors_of_the_folder_only(folder, name):
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(InputError, match="must name files of safetensors beside it"):
        _load(folder)
    index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(InputError, match=r"weights in gone.safetensors"):
        _load(folder)


def test_a_folder_that_is_none_or_damaged_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"has no config.json"):
        _load(tmp_path)
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="must be a file of JSON"):
        _load(folder)


def test_an_adapter_is_refused(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="merge the adapter"):
        _load(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
        {"pooling_mode": "cls", "embedding_dimension": 16},
    ],
)
def test_vectors_are_made_as_the_folder_says(folder, values):
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(values))
    assert _load(folder, pooling="cls")
    with pytest.raises(InputError, match=r"must be that of .*1_Pooling.* trained: cls. Got mean"):
        _load(folder)


def _modules(folder, *names):
    kinds = [{"idx": at, "type": f"sentence_transformers.models.{n}"} for at, n in enumerate(names)]
    (folder / "modules.json").write_text(json.dumps(kinds))


def test_a_module_after_the_pooling_is_not_passed_over(folder):
    """The verdict would be on another model than the one that is used."""
    _modules(folder, "Transformer", "Pooling", "Normalize")
    assert _load(folder)
    _modules(folder, "Transformer", "Pooling", "Dense")
    with pytest.raises(
        InputError, match=r"modules\.json has sentence_transformers\.models\.Dense,"
    ):
        _load(folder)
    assert _load(folder, "sequence-classification")
    (folder / "modules.json").write_text("7")
    with pytest.raises(InputError, match=r"modules\.json has 7,"):
        _load(folder)


@pytest.mark.parametrize("task", ["embedding", "sequence-classification"])
def test_a_configuration_must_not_leave_out_layers(folder, task):
    """The dense model would be another than the one that was trained."""
    weights = load_file(folder / "model.safetensors")
    second = {n.replace("layer.0", "layer.1"): w.clone() for n, w in weights.items()}
    save_file(weights | second, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"must have all layers .* It leaves out .*layer\.1\."):
        _load(folder, task)
    _edit(folder, num_hidden_layers=2)
    assert _load(folder, task)


def test_the_section_must_fit_a_folder(folder):
    with pytest.raises(InputError, match=r"model.task must be given"):
        load_model(folder, ModelSection(), folder=folder)
    with pytest.raises(InputError, match=r"model.factory must be left out"):
        _load(folder, factory="net.py:net")
    with pytest.raises(InputError, match=r"model.kwargs must be left out"):
        _load(folder, kwargs={"width": 3})
    with pytest.raises(InputError, match=r"model.task must be left out"):
        _load(folder / "model.safetensors")
    with pytest.raises(ValueError, match="pooling must be left out unless"):
        ModelSection(task="sequence-classification", pooling="mean")


def test_without_the_library_its_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'mfac-compress\[transformers\]'"):
        _load(folder)
