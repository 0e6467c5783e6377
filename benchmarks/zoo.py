"""Architectures of four collections, with random weights and random data.

They are timm, torchvision, transformers and segmentation_models_pytorch.

What a run needs of each: :func:`build` and :func:`splits` are the recipe's factories, and
:func:`write_model` writes the weights, or the folder of transformers, that it starts from.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

CLASSES = 10
_VOCABULARY, _TOKENS = 128, 16
_LAST = _VOCABULARY - 1
_SAMPLES = {"calibration": 12, "validation": 4}


@dataclass(frozen=True)
class Architecture:
    """A model of a collection, and what it takes.

    Attributes:
        collection: The package; ``segmentation`` is segmentation_models_pytorch.
        name: Of the model there; of transformers the type of its configuration.
        shape: Shape of one input, without the batch; that of tokens has one axis.
        options: What its builder gets beside the number of classes.
        wrapper: What is put around it.
        auto: Of transformers: the class that builds it.
        targets: A class for each sample or for each pixel; ``none`` where outputs are no classes.
        output: The recipe's ``model.output``.
        task: The recipe's ``model.task``; None where it is built by a factory, and not from a
            folder.
    """

    collection: Literal["timm", "torchvision", "transformers", "segmentation"]
    name: str
    shape: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    wrapper: type[nn.Module] | None = None
    auto: str = ""
    targets: Literal["class", "pixels", "none"] = "class"
    output: str | None = None
    task: str | None = None

    @property
    def file(self) -> str:
        """Name of what is written of it."""
        return "model.pt" if self.task is None else "model"

    def make(self) -> nn.Module:
        """Build it, with random weights."""
        _declare_operators()
        module = _BUILDERS[self.collection](self)
        return module if self.wrapper is None else self.wrapper(module)

    def inputs(self, generator: torch.Generator) -> Any:
        """Draw one input."""
        if len(self.shape) > 1:
            return torch.randn(self.shape, generator=generator)
        tokens = torch.randint(3, _LAST, self.shape, generator=generator)
        tokens[-1] = _LAST  # some models take this one for the end of a text
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}

    def target(self, generator: torch.Generator) -> Tensor:
        """Draw one target."""
        shape = self.shape[1:] if self.targets == "pixels" else ()
        return torch.randint(CLASSES, shape, generator=generator)


def build(name: str) -> nn.Module:
    """The recipe's ``model.factory``."""
    return ARCHITECTURES[name].make()


def splits(name: str) -> dict[str, "RandomSamples"]:
    """The recipe's ``data.factory``."""
    numbered = enumerate(_SAMPLES.items())
    return {
        split: RandomSamples(ARCHITECTURES[name], samples, seed)
        for seed, (split, samples) in numbered
    }


@dataclass(frozen=True)
class RandomSamples:
    """A data set of random numbers, the same each time."""

    architecture: Architecture
    samples: int
    seed: int

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, position: int) -> tuple[Any, Tensor]:
        generator = torch.Generator().manual_seed(1000 * self.seed + position)
        return self.architecture.inputs(generator), self.architecture.target(generator)


def mean_square(outputs: Any, targets: Tensor) -> Tensor:
    """The recipe's ``task.loss`` where outputs are no classes."""
    del targets
    return torch.stack([leaf.square().mean() for leaf in _leaves(outputs)]).sum()


def mean_size(outputs: Any, targets: Tensor) -> Tensor:
    """The recipe's ``task.metric`` where outputs are no classes: a value for each sample."""
    del targets
    return torch.stack([leaf.abs().flatten(1).mean(1) for leaf in _leaves(outputs)]).sum(0)


def _leaves(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() else []
    parts = outputs.values() if isinstance(outputs, Mapping) else outputs
    return [leaf for part in parts for leaf in _leaves(part)]


def write_model(architecture: Architecture, path: Path) -> None:
    """Write an architecture with random weights: the MODEL of a run."""
    torch.manual_seed(0)
    module = architecture.make()
    _draw_constants(module)
    _estimate_statistics(module, architecture)
    if architecture.task is None:
        torch.save(module.state_dict(), path)
    else:
        module.save_pretrained(path)


@torch.no_grad()
def _draw_constants(module: nn.Module) -> None:
    """Draw what is constant before training: scales and last layers of 0 hide whole branches."""
    for parameter in module.parameters():
        if parameter.numel() and parameter.min() == parameter.max():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)


@torch.no_grad()
def _estimate_statistics(module: nn.Module, architecture: Architecture) -> None:
    """Give batch norms the statistics of some samples: without them, deep models overflow."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.train()
        norm.momentum = None  # the mean of all that it sees
    generator = torch.Generator().manual_seed(0)
    module(torch.stack([architecture.inputs(generator) for _ in range(8)]))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


class Features(nn.Module):
    """A detector of torchvision up to its head: what follows gives boxes of any number."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.head = detector.rpn.head if hasattr(detector, "rpn") else detector.head

    def forward(self, images: Tensor) -> Any:
        return self.head(list(self.backbone(images).values()))


def _of_timm(architecture: Architecture) -> nn.Module:
    import timm

    return timm.create_model(architecture.name, num_classes=CLASSES, **architecture.options)


def _of_torchvision(architecture: Architecture) -> nn.Module:
    from torchvision.models import get_model

    options = {"weights": None, "num_classes": CLASSES, **architecture.options}
    return get_model(architecture.name, **options)


def _of_transformers(architecture: Architecture) -> nn.Module:
    import transformers

    config = transformers.AutoConfig.for_model(architecture.name, **architecture.options)
    auto = getattr(transformers, architecture.auto)
    return auto.from_config(config, attn_implementation="eager")


def _of_segmentation(architecture: Architecture) -> nn.Module:
    import segmentation_models_pytorch

    options = {"encoder_name": "tu-mobilenetv3_small_050", **architecture.options}
    return segmentation_models_pytorch.create_model(
        architecture.name, encoder_weights=None, classes=CLASSES, **options
    )


_BUILDERS = {
    "timm": _of_timm,
    "torchvision": _of_torchvision,
    "transformers": _of_transformers,
    "segmentation": _of_segmentation,
}


def _declare_operators() -> None:
    """Declare operators of torchvision where its own library does not fit this PyTorch.

    PyPI's torchvision cannot load it beside a build of PyTorch for CPUs, and cannot be imported
    without these two (nor can timm, which imports it). None of the models runs them.
    """
    if hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)


_declared: list[torch.library.Library] = []
"""Operators are gone with the object that declared them."""


def _timm(name: str, size: int = 64, /, **options: Any) -> Architecture:
    return Architecture("timm", name, (3, size, size), options)


def _resized(name: str, size: int = 64, /, **options: Any) -> Architecture:
    """A model of timm that is built for one size of images."""
    return _timm(name, size, img_size=size, **options)


def _torchvision(name: str, size: int = 64, /, **options: Any) -> Architecture:
    return Architecture("torchvision", name, (3, size, size), options)


def _dense(name: str, **fields: Any) -> Architecture:
    """A model of torchvision for segmentation or detection."""
    options = {"weights_backbone": None}
    return Architecture("torchvision", name, (3, 64, 64), options, **fields)


def _segmentation(name: str, size: int = 64, /, **options: Any) -> Architecture:
    return Architecture("segmentation", name, (3, size, size), options, targets="pixels")


_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
"""Configurations of transformers know these names, whatever they call the numbers themselves."""


def _text(name: str, task: str = "sequence-classification", /, **options: Any) -> Architecture:
    auto = "AutoModel" if task == "embedding" else "AutoModelForSequenceClassification"
    values = {"vocab_size": _VOCABULARY, "pad_token_id": 0, **_SMALL, **options}
    if task == "embedding":
        return Architecture(
            "transformers", name, (_TOKENS,), values, auto=auto, targets="none", task=task
        )
    values["num_labels"] = CLASSES
    return Architecture("transformers", name, (_TOKENS,), values, auto=auto, task=task)


def _image(name: str, size: int = 64, /, **options: Any) -> Architecture:
    return Architecture(
        "transformers",
        name,
        (3, size, size),
        {"image_size": size, "num_labels": CLASSES, **options},
        auto="AutoModelForImageClassification",
        task="image-classification",
    )


def _boxes(name: str, /, **options: Any) -> Architecture:
    """A detector of transformers: the logits and the box of each query."""
    values = {"num_labels": CLASSES, **options}
    auto = "AutoModelForObjectDetection"
    return Architecture("transformers", name, (3, 64, 64), values, auto=auto, targets="none")


def _pixels(name: str, /, **options: Any) -> Architecture:
    """A model of transformers for segmentation: the logits have fewer pixels than the images."""
    values = {"num_labels": CLASSES, **options}
    auto = "AutoModelForSemanticSegmentation"
    return Architecture(
        "transformers", name, (3, 64, 64), values, auto=auto, targets="none", output="logits"
    )


_BACKBONE = {
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
    "backbone_config": {
        "model_type": "resnet",
        "embedding_size": 16,
        "hidden_sizes": [16, 32, 32, 64],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": ["stage4"],
    },
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_queries": 10,
}

_PLAIN = (
    "resnet10t resnet18 resnet26d seresnet18 skresnet18 resnetv2_18 resnest14d resnext26ts "
    "gcresnext26ts eca_resnext26ts dla46_c dla46x_c regnetx_002 regnety_002 regnetz_005 "
    "ese_vovnet19b_slim ese_vovnet19b_dw cs3darknet_s repvgg_a0 mobileone_s0 mobilenetv1_100 "
    "mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small_050 mnasnet_small fbnetc_100 "
    "semnasnet_050 spnasnet_100 efficientnet_lite0 efficientnet_b0 tinynet_e mixnet_s ghostnet_050 "
    "ghostnetv2_100 ghostnetv3_050 hardcorenas_a lcnet_035 rexnet_100 hrnet_w18_small "
    "inception_next_atto selecsls42 nf_regnet_b0 nf_resnet26 convnext_atto convnextv2_atto "
    "edgenext_xx_small efficientvit_b0 fastvit_t8 hgnetv2_b0 mambaout_femto poolformer_s12 "
    "poolformerv2_s12 mobilevit_xxs mobilevitv2_050 pvt_v2_b0 repghostnet_050 repvit_m0_9 "
    "starnet_s050 swiftformer_xs shvit_s1 densenet121 test_resnet test_byobnet test_efficientnet "
    "test_nfnet"
)
"""Models of timm that take images of any size, at 64 x 64."""

_LISTED = (
    *map(_timm, _PLAIN.split()),
    _timm("inception_v3", 96),
    _timm("xception41", 64),
    _timm("efficientvit_m0", 224),
    _timm("levit_128s", 224),
    _timm("levit_conv_128s", 224),
    _timm("visformer_tiny", 224),
    _timm("caformer_s18"),
    _timm("convformer_s18"),
    _timm("davit_tiny", 64, depths=(1, 1, 1, 1), embed_dims=(24, 48, 96, 96)),
    _timm("focalnet_tiny_srf"),
    _timm("convmixer_768_32"),
    _timm("vit_tiny_patch16_224", 224, depth=3),
    _resized("deit_tiny_distilled_patch16_224", depth=3),
    _resized("beit_base_patch16_224", embed_dim=96, depth=3, num_heads=3),
    _resized("beitv2_base_patch16_224", embed_dim=96, depth=3, num_heads=3),
    _resized("eva02_tiny_patch14_224", 56, depth=3),
    _resized("vit_relpos_small_patch16_224", embed_dim=96, depth=3, num_heads=3),
    _resized("vit_srelpos_small_patch16_224", embed_dim=96, depth=3, num_heads=3),
    _resized("cait_xxs24_224", depth=3),
    _resized("convit_tiny"),
    _resized("coat_lite_tiny"),
    _resized("pit_ti_224"),
    _resized("mixer_s32_224"),
    _resized("gmixer_12_224"),
    _resized("resmlp_12_224"),
    _resized("gmlp_ti16_224"),
    _resized("swin_tiny_patch4_window7_224", 56, embed_dim=24, depths=(2, 2), num_heads=(2, 4)),
    _resized("swinv2_tiny_window8_256", 64, embed_dim=24, depths=(2, 2), num_heads=(2, 4)),
    _resized("swinv2_cr_tiny_224", 56, embed_dim=24, depths=(2, 2), num_heads=(2, 4)),
    _timm("tiny_vit_5m_224", 224),
    _resized("xcit_nano_12_p16_224", depth=3),
    _resized("volo_d1_224"),
    _resized("tnt_s_patch16_224", depth=3),
    _resized("crossvit_tiny_240", 240),
    _resized("maxvit_pico_rw_256", 64),
    _resized("coatnet_pico_rw_224", 224),
    _resized("gcvit_xxtiny", 224),
    _resized("nest_tiny"),
    _resized("mvitv2_tiny", 64),
    _resized("hiera_tiny_224", 224, embed_dim=24, stages=(1, 1, 1, 1)),
    _resized("twins_svt_small", 64, depths=(1, 1, 2, 1)),
    _resized("twins_pcpvt_small", 64, depths=(1, 1, 2, 1)),
    _timm("efficientformer_l1", 224),
    _timm("efficientformerv2_s0", 224),
    _timm("sequencer2d_s", 224, layers=(1, 1, 1, 1), embed_dims=(48, 96, 96, 96)),
    _torchvision("alexnet", 64),
    _torchvision("squeezenet1_1"),
    _torchvision("shufflenet_v2_x0_5"),
    _torchvision("mobilenet_v2"),
    _torchvision("mobilenet_v3_small"),
    _torchvision("mnasnet0_5"),
    _torchvision("regnet_x_400mf"),
    _torchvision("resnet18"),
    _torchvision("resnext50_32x4d"),
    _torchvision("googlenet", init_weights=True),
    _torchvision("densenet121"),
    _torchvision("efficientnet_v2_s"),
    _torchvision("convnext_tiny"),
    _torchvision("swin_t"),
    _torchvision("swin_v2_t"),
    _torchvision("maxvit_t", 224),
    _torchvision("vit_b_32", 64, image_size=64),
    _dense("fcn_resnet50", targets="pixels", output="out"),
    _dense("deeplabv3_mobilenet_v3_large", targets="pixels", output="out"),
    _dense("lraspp_mobilenet_v3_large", targets="pixels", output="out"),
    _dense("ssdlite320_mobilenet_v3_large", targets="none", wrapper=Features),
    _dense("fasterrcnn_mobilenet_v3_large_320_fpn", targets="none", wrapper=Features),
    _dense("retinanet_resnet50_fpn", targets="none", wrapper=Features),
    _dense("fcos_resnet50_fpn", targets="none", wrapper=Features),
    _segmentation("unet", decoder_channels=(64, 32, 32, 16, 16)),
    _segmentation("unetplusplus", decoder_channels=(64, 32, 32, 16, 16)),
    _segmentation("manet", decoder_channels=(64, 32, 32, 16, 16)),
    _segmentation("linknet"),
    _segmentation("fpn"),
    _segmentation("pspnet"),
    _segmentation("deeplabv3"),
    _segmentation("deeplabv3plus"),
    _segmentation("pan", 128),
    _segmentation("upernet", decoder_channels=64),
    _segmentation("segformer"),
    _text("bert"),
    _text("distilbert"),
    _text("roberta"),
    _text("albert", embedding_size=16),
    _text("electra", embedding_size=16),
    _text("deberta"),
    _text("deberta-v2", pos_att_type=["p2c", "c2p"], relative_attention=True),
    _text("mpnet"),
    _text("convbert", embedding_size=16),
    _text("roformer", embedding_size=16),
    _text("mobilebert", embedding_size=16, intra_bottleneck_size=16, true_hidden_size=16),
    _text("squeezebert", embedding_size=32),
    _text("nystromformer", segment_means_seq_len=16, num_landmarks=4),
    _text("fnet"),
    _text("modernbert", num_attention_heads=2, global_attn_every_n_layers=2, local_attention=8),
    _text("gpt2"),
    _text("gpt_neo", attention_types=[[["global", "local"], 1]]),
    _text("gpt_neox"),
    _text("opt", ffn_dim=64, word_embed_proj_dim=32),
    _text("bloom"),
    _text("llama"),
    _text("mistral", num_key_value_heads=2),
    _text("qwen2", num_key_value_heads=2),
    _text("qwen3", num_key_value_heads=2, head_dim=8),
    _text("gemma", num_key_value_heads=2, head_dim=8),
    _text("phi"),
    _text("xlnet", d_head=8),
    _text("t5", d_kv=8, d_ff=64, eos_token_id=_LAST, decoder_start_token_id=0),
    _text("bart", encoder_layers=1, decoder_layers=1, encoder_ffn_dim=64, decoder_ffn_dim=64,
          encoder_attention_heads=4, decoder_attention_heads=4, eos_token_id=_LAST),
    _text("xlm-roberta", "embedding"),
    _text("nomic_bert", "embedding"),
    _image("vit", **_SMALL),
    _image("ijepa", **_SMALL),
    _image("beit", **_SMALL),
    _image("dinov2", **_SMALL),
    _image("vit_msn", **_SMALL),
    _image("data2vec-vision", **_SMALL),
    _image("swin", embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4),
    _image("swinv2", embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4),
    _image("convnext", hidden_sizes=[16, 32, 32, 32], depths=[1, 1, 1, 1]),
    _image("resnet", embedding_size=16, hidden_sizes=[16, 32, 32, 64], depths=[1, 1, 1, 1]),
    _image("regnet", embedding_size=16, hidden_sizes=[16, 32, 32, 64], depths=[1, 1, 1, 1],
           groups_width=8),
    _image("mobilenet_v2"),
    _image("mobilevit", hidden_sizes=[32, 48, 64], neck_hidden_sizes=[8, 16, 16, 32, 32, 32, 64]),
    _image("poolformer", hidden_sizes=[16, 32, 32, 64], depths=[1, 1, 1, 1]),
    _image("pvt", hidden_sizes=[16, 32, 40, 64], depths=[1, 1, 1, 1]),
    _image("segformer", hidden_sizes=[16, 32, 32, 64], depths=[1, 1, 1, 1]),
    _image("focalnet", embed_dim=16, depths=[1, 1]),
    _image("pvt_v2", hidden_sizes=[16, 32, 40, 64], depths=[1, 1, 1, 1]),
    _pixels("segformer", hidden_sizes=[16, 32, 32, 64], depths=[1, 1, 1, 1],
            decoder_hidden_size=32),
    _pixels("mobilevit", image_size=64, hidden_sizes=[32, 48, 64],
            neck_hidden_sizes=[8, 16, 16, 32, 32, 32, 64], aspp_out_channels=32),
    _pixels("mobilenet_v2", image_size=64, depth_multiplier=0.35),
    _boxes("yolos", image_size=[64, 64], num_detection_tokens=10, **_SMALL),
    _boxes("detr", **_BACKBONE),
    _boxes("conditional_detr", **_BACKBONE),
    _boxes("table-transformer", **_BACKBONE),
)  # fmt: skip


def _label(architecture: Architecture) -> str:
    part = architecture.name
    if architecture.wrapper is not None:
        part += f", {architecture.wrapper.__name__.lower()}"
    if architecture.auto == "AutoModelForSemanticSegmentation":
        part += ", segmentation"
    return f"{architecture.collection}/{part}"


ARCHITECTURES = {_label(architecture): architecture for architecture in _LISTED}
"""By name: the collection, the model there, and how much of it."""
