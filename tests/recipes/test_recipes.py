"""Every shipped recipe is valid, and the quickstart passes its gates."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

from mfac_compress.pipeline.cli import main
from mfac_compress.pipeline.recipe.file import dump_recipe, load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
REAL = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_a_shipped_recipe_is_valid_and_survives_a_round_trip(path, tmp_path):
    recipe = load_recipe(path)
    (tmp_path / "resolved.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "resolved.yaml") == recipe


def test_the_quickstart_passes(tmp_path):
    arguments = [str(RECIPES / "digits.yaml"), str(RECIPES / "models" / "digits.safetensors")]

    result = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "digits"), "--json"])

    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["verdict"] == "pass"
    measured = report["variants"]["sparse"]
    assert measured["sparsity"] == pytest.approx(0.8, abs=1e-4)
    assert measured["metric"]["value"] > 0.95


def test_the_quickstart_prunes_whole_blocks_by_magnitude(tmp_path):
    changes = {
        "prune.method": "magnitude",
        "prune.update": "none",
        "prune.sparsity": 0.6,
        "prune.steps": 1,
        "recover.epochs": 2,
        "quantize": "off",
        "export.sparse_kernels": "off",
        "validate.latency": "null",
        "validate.gates": "{max_metric_drop: 0.02, min_sparsity: 0.6, max_parity_error: 0.001}",
    }
    settings = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    arguments = [str(RECIPES / "digits.yaml"), str(RECIPES / "models" / "digits.safetensors")]

    result = CliRunner().invoke(main, [*arguments, *settings, "-o", str(tmp_path), "--json"])

    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["sparsity"]["pattern"] == "blocks of 4 outputs"
    assert report["sparsity"]["target"] == pytest.approx(0.6)
    assert "15.weight" in report["sparsity"]["left_out"]  # 10 classes are no whole blocks
    assert all(tensor["intact"] for tensor in report["variants"]["sparse"]["audit"])
    for mask in load_file(tmp_path / "masks.safetensors").values():
        blocks = mask.unflatten(0, (-1, 4)).sum(dim=1)
        assert set(blocks.unique().tolist()) == {0, 4}


def test_the_vision_transformer_passes_with_less_training(tmp_path):
    changes = {
        "prune.steps": 1,
        "prune.first_order": "false",
        "prune.sparsity": 0.6,
        "recover.epochs": 1,
        "quantize": "off",
        "export.sparse_kernels": "off",
        "validate": "{batch_size: 256, latency: null, gates: {max_metric_drop: 0.03}}",
    }
    settings = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    arguments = [
        str(RECIPES / "vit-digits.yaml"),
        str(RECIPES / "models" / "vit-digits.safetensors"),
    ]

    result = CliRunner().invoke(main, [*arguments, *settings, "-o", str(tmp_path), "--json"])

    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["verdict"] == "pass"
    assert set(report["sparsity"]["left_out"]) >= {"patches.weight", "positions", "head.weight"}


@pytest.mark.skipif(not REAL.is_dir(), reason="needs CIFAR-10 and the checkpoint in ../shared/data")
def test_the_recipe_for_channels_removes_them_within_blocks():
    model = REAL / "weights" / "resnet20_cifar10_akamaster.safetensors"
    arguments = [str(RECIPES / "resnet20-channels.yaml"), str(model), "--dry-run"]

    result = CliRunner().invoke(main, arguments)

    assert result.exit_code == 0, result.output
    assert "pattern: channels" in result.output
    assert "layer3.2.conv2.weight" in result.output
    # What is within blocks may go; the first convolution and the last layer are of the stream.
    assert "linear.weight" in result.output.split("Left out")[1]


@pytest.mark.skipif(not REAL.is_dir(), reason="needs CIFAR-10 and the checkpoint in ../shared/data")
@pytest.mark.parametrize(
    ("recipe", "samples", "repair"),
    [
        (
            "resnet20-cifar10.yaml",
            "calibration 10,000, recovery 10,000, validation 10,000",
            "none (reconstruct.method)",
        ),
        (
            "resnet20-oneshot.yaml",
            "calibration 20,000, validation 10,000",
            "least squares on 1,000 calibration samples after each of 8 steps",
        ),
        (
            "resnet20-80.yaml",
            "at the end, on 19,000 calibration samples, taught by the dense model (kl, weight 1)",
            "least squares on 1,000 calibration samples after each of 8 steps",
        ),
    ],
)
def test_the_resnet_recipes_fit_the_real_checkpoint_and_images(recipe, samples, repair):
    model = REAL / "weights" / "resnet20_cifar10_akamaster.safetensors"

    result = CliRunner().invoke(main, [str(RECIPES / recipe), str(model), "--dry-run"])

    assert result.exit_code == 0, result.output
    assert "weights: 268,336, to remove 214,669" in result.output
    assert samples in result.output
    assert f"repair: {repair}" in result.output
