"""Names, files and fresh students: what is loaded, what is said of it, what is refused."""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from dreamkd import models
from dreamkd.errors import ConfigError, ModelError
from dreamkd.events import Event, Note
from dreamkd.models import Classifier, downloads, from_timm, oldnames

DATA = os.environ.get("DREAMKD_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="DREAMKD_DATA is not set")


def student(name: str = "cifar_resnet8", **changes: object) -> Classifier:
    arguments = {
        "num_classes": 3,
        "input_size": (1, 16, 16),
        "mean": (0.3,),
        "std": (0.4,),
        "class_names": ("a", "b", "ü"),
    }
    return models.create(name, **arguments | changes)  # type: ignore[arg-type]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Empty caches, and a network on which nothing answers."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def test_a_bundled_teacher_knows_itself() -> None:
    card = models.load("digits_resnet14").card
    assert card.architecture == "timm:cifar_resnet14"
    assert card.weights == "bundled"
    assert card.source.startswith("digits_resnet14: timm:cifar_resnet14")
    assert (card.num_classes, card.input_size) == (10, (1, 16, 16))
    assert card.class_names == tuple("0123456789")
    assert (card.mean, card.std, card.crop_pct) == ((0.305,), (0.352,), 1.0)
    assert (card.pretrained, card.data_free) == (True, False)


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("resnet18", "torchvision:resnet18"),
        ("timm:resnet18", "timm:resnet18"),
        ("torchvision:resnet18", "torchvision:resnet18"),
        ("resnet18.a1_in1k", "timm:resnet18"),
        ("resnet50.IMAGENET1K_V2", "torchvision:resnet50"),
        ("resnet26d", "timm:resnet26d"),
        ("cifar_resnet8", "timm:cifar_resnet8"),
    ],
)
def test_a_name_means_torchvision_then_timm(name: str, architecture: str) -> None:
    card = models.load(name, pretrained=False, device="meta").card
    assert card.architecture == architecture
    assert (card.weights, card.pretrained) == ("random", False)


def test_preprocessing_is_the_weights_own() -> None:
    # As published: V1 resizes to 256 and V2 to 232 before the crop of 224, timm's a1 to 224 / 0.95.
    first, second, timms = (
        models.load(name, pretrained=False, device="meta").card
        for name in ("resnet50", "resnet50.IMAGENET1K_V2", "timm:resnet50")
    )
    assert first.mean == second.mean == timms.mean == (0.485, 0.456, 0.406)
    assert (first.crop_pct, second.crop_pct, timms.crop_pct) == (224 / 256, 224 / 232, 0.95)
    assert (first.interpolation, timms.interpolation) == ("bilinear", "bicubic")
    assert first.num_classes == len(first.class_names) == 1000
    assert first.class_names[0] == "tench"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5O", "did you mean 'resnet50'"),
        ("torchvision:resnet26d", "no model named 'torchvision:resnet26d'"),
        ("tensorflow:resnet50", "no model source 'tensorflow:'"),
        ("timm:resnet18.a1_in22k", "no weights 'a1_in22k'.*a1_in1k"),
        ("torchvision:resnet18.IMAGENET1K_V2", "no weights 'IMAGENET1K_V2'.*IMAGENET1K_V1"),
        ("cifar10_resnet2O", "cifar"),
        ("fasterrcnn_resnet50_fpn", "no model named"),
        ("vit_base_patch14_dinov2", "feature extractor"),
        ("missing.pt", "missing.pt does not exist"),
        ("n" * 300, "no model named"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        models.load(name)


def test_without_network_a_name_fails_in_one_line(offline: Path) -> None:
    for name, where in (("shufflenet_v2_x0_5", "TORCH_HOME"), ("timm:test_resnet", "HF_HUB_CACHE")):
        with pytest.raises(ModelError, match=f"cannot be downloaded.*FILE --arch.*{where}") as e:
            models.load(name)
        assert "\n" not in str(e.value)


def test_a_download_is_told_once(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = torchvision.models.shufflenet_v2_x0_5().state_dict()

    def download(_: str, to: str, *__: object, **___: object) -> None:
        torch.save(state, to)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(downloads, "_require_connection", lambda _: None)
    heard: list[Event] = []
    for _ in range(2):
        models.load("shufflenet_v2_x0_5", on_event=heard.append)
    (note,) = heard
    assert isinstance(note, Note)
    assert note.text.startswith("downloading https://")


def test_an_encoder_without_a_head_is_refused() -> None:
    with pytest.raises(ModelError, match="encoder"):
        models.load("mobilenetv5_300m_enc", pretrained=False, num_classes=10, device="meta")


def test_a_name_without_weights_says_so(offline: Path) -> None:
    """With advice that is legal in every command."""
    line = (
        r"^timm:cifar_resnet8 has no pretrained weights in timm; pass a checkpoint FILE \(dreamkd "
        r"inspect cifar_resnet8 --no-pretrained looks at the architecture alone\)$"
    )
    with pytest.raises(ModelError, match=line):
        models.load("cifar_resnet8")
    with pytest.raises(
        ModelError, match=r"\(dreamkd inspect timm:.*dinov2 --no-pretrained --num-cla"
    ):
        models.load("vit_base_patch14_dinov2")


def test_a_filled_torch_hub_cache_needs_no_network(offline: Path) -> None:
    module = torchvision.models.shufflenet_v2_x0_5()
    folder = offline / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(module.state_dict(), folder / "shufflenetv2_x0.5-f707e7126e.pth")
    classifier = models.load("shufflenet_v2_x0_5")
    assert classifier.card.weights == "IMAGENET1K_V1"
    assert classifier.card.pretrained
    inputs = torch.rand(1, 3, 224, 224)
    assert torch.equal(classifier.module(inputs), module.eval()(inputs))
    with pytest.raises(ModelError, match="1000 classes, not 10"):
        models.load("shufflenet_v2_x0_5", num_classes=10)
    with pytest.raises(ModelError, match="3 channels, not 1"):
        models.load("shufflenet_v2_x0_5", input_size=(1, 224, 224))


def test_a_filled_hub_cache_needs_no_network(offline: Path) -> None:
    module = timm.create_model("test_resnet")
    folder = offline / "hub" / "models--timm--test_resnet.r160_in1k"
    (folder / "snapshots" / "0").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0")
    safetensors.torch.save_file(module.state_dict(), folder / "snapshots" / "0/model.safetensors")
    classifier = models.load("test_resnet")
    assert (classifier.card.weights, classifier.card.num_classes) == ("r160_in1k", 1000)
    inputs = torch.rand(1, 3, 160, 160)
    assert torch.equal(classifier.module(inputs), module.eval()(inputs))


def test_a_damaged_cache_is_one_line(offline: Path) -> None:
    folder = offline / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "shufflenetv2_x0.5-f707e7126e.pth").write_bytes(b"<html>proxy error</html>")
    with pytest.raises(ModelError, match="neither a safetensors nor a torch file"):
        models.load("shufflenet_v2_x0_5")


def test_weights_that_do_not_follow_a_size_are_no_damage(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("size mismatch:\n\tbiases")

    monkeypatch.setattr("dreamkd.models.from_timm.downloads.from_hub", lambda *_, **__: Path("w"))
    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(ModelError, match=r"loaded; leave --input-size out, .* any but 160x160"):
        models.load("test_resnet", input_size=64)
    with pytest.raises(ModelError, match="w cannot be loaded; delete it: size mismatch"):
        models.load("test_resnet")


def test_advice_names_the_weights_that_were_asked_for(offline: Path) -> None:
    for name in ("timm:resnet50.a1_in1k", "torchvision:resnet50.IMAGENET1K_V2"):
        with pytest.raises(ModelError, match=f"FILE --arch {name}"):
            models.load(name)


def test_a_network_that_asks_for_the_version_of_a_state_loads(tmp_path: Path) -> None:
    module = torchvision.models.mnasnet0_5(num_classes=3).eval()
    torch.save(dict(module.state_dict()), tmp_path / "t.pt")
    found = models.load(tmp_path / "t.pt")
    inputs = torch.rand(1, 3, 64, 64)
    assert torch.equal(found.module(inputs), module(inputs))


#: What published files say, as torchvision's own loading has it.
OLD = {
    "densenet121": lambda name: re.sub(r"(denselayer\d+\.(norm|conv))([12])\.", r"\1.\3.", name),
    "vit_b_16": lambda name: name.replace(".mlp.0.", ".mlp.linear_1.").replace(
        ".mlp.3.", ".mlp.linear_2."
    ),
}


@pytest.mark.parametrize("name", OLD)
def test_published_files_have_the_names_of_their_time(name: str) -> None:
    with torch.device("meta"):
        state = torchvision.models.get_model(name).state_dict()
    published = {OLD[name](key): value for key, value in state.items()}
    assert published.keys() != state.keys()
    assert oldnames.current(published).keys() == oldnames.current(state).keys() == state.keys()


def test_a_densenet_of_its_time_loads(offline: Path) -> None:
    module = torchvision.models.densenet121().eval()
    state = {OLD["densenet121"](key): value for key, value in module.state_dict().items()}
    folder = offline / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(state, folder / "densenet121-a639ec97.pth")
    inputs = torch.rand(1, 3, 64, 64)
    for spec in ("densenet121", folder / "densenet121-a639ec97.pth"):
        assert torch.equal(models.load(spec).module(inputs), module(inputs))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_a_file_is_taken_to_rescale_as_published_ones_do(name: str, tmp_path: Path) -> None:
    """And the advice for one that was trained without gives what it then computes."""
    other = torchvision.models.get_model(
        name, num_classes=4, aux_logits=False, init_weights=False, transform_input=False
    ).eval()
    torch.save(other.state_dict(), tmp_path / "t.pt")
    found = models.load(tmp_path / "t.pt", input_size=96)
    values = re.search(r"pass --mean ([\d.,]+) --std ([\d.,]+)", found.card.source)
    assert values is not None
    mean, std = (torch.tensor([*map(float, v.split(","))]).view(3, 1, 1) for v in values.groups())
    pixels = torch.rand(2, 3, 96, 96)
    usual = [torch.tensor(v).view(3, 1, 1) for v in (found.card.mean, found.card.std)]
    wanted = other((pixels - usual[0]) / usual[1])
    assert torch.allclose(found.module((pixels - mean) / std), wanted, atol=1e-3, rtol=1e-3)
    assert "transform_input" not in models.load(name, pretrained=False).card.source
    models.save(found, tmp_path / "ours.safetensors")
    assert "transform_input" not in models.load(tmp_path / "ours.safetensors").card.source


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_training_heads_give_logits_only(name: str) -> None:
    size = (3, 96, 96)
    module = models.load(name, pretrained=False, num_classes=4, input_size=size).module
    assert module(torch.zeros(1, *size)).shape == (1, 4)
    assert module.train()(torch.zeros(2, *size)).shape == (2, 4)


def test_inception_expects_299() -> None:
    card = models.load("inception_v3", pretrained=False, device="meta").card
    assert card.input_size == (3, 299, 299)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "googlenet"])
def test_torchvision_takes_any_channel_count(name: str) -> None:
    module = models.load(name, pretrained=False, input_size=(1, 64, 64), device="meta").module
    assert module(torch.zeros(1, 1, 64, 64, device="meta")).shape == (1, 1000)


def test_random_weights_are_the_same_everywhere_and_leave_the_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = models.load("cifar_resnet8", pretrained=False)
    student(seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert first.sha256() == models.load("cifar_resnet8", pretrained=False).sha256()
    assert student(seed=0).sha256() != student(seed=1).sha256()


def test_a_saved_student_loads_alone_and_equal(tmp_path: Path) -> None:
    made = student()
    models.save(made, tmp_path / "s.safetensors", extra={"data_free": "true", "trained": "here"})
    found = models.load(tmp_path / "s.safetensors")
    assert found.sha256() == made.sha256()
    assert found.card.data_free
    assert found.card.weights == "file s.safetensors"
    for field in ("architecture", "num_classes", "class_names", "input_size", "mean", "std"):
        assert getattr(found.card, field) == getattr(made.card, field)
    assert (found.card.interpolation, found.card.crop_pct) == ("bicubic", 1.0)
    models.save(found, tmp_path / "again.safetensors", extra={"trained": "here"})
    again, first = (tmp_path / "again.safetensors"), (tmp_path / "s.safetensors")
    assert again.read_bytes() == first.read_bytes()


def test_the_caller_s_word_wins_over_metadata(tmp_path: Path) -> None:
    models.save(student(), tmp_path / "s.safetensors")
    card = models.load(
        tmp_path / "s.safetensors",
        input_size=(1, 20, 24),
        mean=(0.1,),
        std=(0.2,),
        interpolation="bilinear",
        crop_pct=0.5,
    ).card
    assert (card.input_size, card.mean, card.std) == ((1, 20, 24), (0.1,), (0.2,))
    assert (card.interpolation, card.crop_pct) == ("bilinear", 0.5)


def test_a_file_smaller_than_its_architecture_s_default_is_given_its_size(tmp_path: Path) -> None:
    module = timm.create_model("resnet10t", num_classes=5)
    torch.save(module.state_dict(), tmp_path / "t.pt")
    classifier = models.load(tmp_path / "t.pt", input_size=(3, 64, 64))
    assert classifier.card.architecture == "timm:resnet10t"
    assert classifier.card.input_size == (3, 64, 64)
    assert classifier.card.class_names == ()
    assert classifier.module(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def test_a_transformer_of_another_image_size(tmp_path: Path) -> None:
    module = timm.create_model("test_vit", num_classes=5, img_size=64)
    torch.save(module.state_dict(), tmp_path / "t.pt")
    with pytest.raises(ModelError, match=r"test_vit at another image size\?.*--input-size"):
        models.load(tmp_path / "t.pt")
    card = models.load(tmp_path / "t.pt", input_size=(3, 64, 64)).card
    assert (card.architecture, card.num_classes) == ("timm:test_vit", 5)


def test_a_size_that_the_weights_are_not_for_is_said(tmp_path: Path) -> None:
    """Of a network with positions; random weights of it are free to have it."""
    sized = {"pretrained": False, "num_classes": 5, "input_size": (1, 64, 64)}
    models.save(models.load("timm:test_vit", **sized), tmp_path / "s.safetensors")
    line = r"s\.safetensors: the weights are for 64x64 pixels, not 32x32; leave it out, or take"
    for size in ((1, 32, 32), (32, 32)):
        with pytest.raises(ModelError, match=line):
            models.load(tmp_path / "s.safetensors", input_size=size)
        card = models.load(tmp_path / "s.safetensors", input_size=size, pretrained=False).card
        assert (card.num_classes, card.input_size) == (5, (1, 32, 32))
    module = timm.create_model("test_vit", num_classes=5)
    torch.save({f"net.{k}": v for k, v in module.state_dict().items()}, tmp_path / "t.pt")
    with pytest.raises(ModelError, match="for 160x160 pixels, not 64x64"):
        models.load(tmp_path / "t.pt", arch="timm:test_vit", input_size=(3, 64, 64))


ARGUMENTS = argparse.Namespace(model="resnet18", data="imagenet")
TRAINED = {
    "plain": lambda state: state,
    "torchvision": lambda state: {"model": state, "args": ARGUMENTS, "epoch": 9},
    "timm": lambda state: {"state_dict": state, "arch": "resnet18", "args": ARGUMENTS},
    "parallel": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
}


@pytest.mark.parametrize("kind", TRAINED)
def test_training_checkpoints_of_a_resnet18_load_as_they_are(tmp_path: Path, kind: str) -> None:
    module = torchvision.models.resnet18(num_classes=6)
    torch.save(TRAINED[kind](module.state_dict()), tmp_path / "t.pt")
    classifier = models.load(tmp_path / "t.pt")
    assert classifier.card.architecture == "torchvision:resnet18"
    assert classifier.card.num_classes == 6
    assert not classifier.module.training
    inputs = torch.rand(2, 3, 64, 64)
    assert torch.equal(classifier.module(inputs), module.eval()(inputs))


def test_what_timms_training_says_of_its_images_is_taken(tmp_path: Path) -> None:
    module = timm.create_model("resnet18", num_classes=6)
    options = {"model": "resnet18", "img_size": 64, "input_size": None, "crop_pct": 1.0}
    options |= {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "random"}
    content = {"arch": "resnet18", "state_dict": module.state_dict()}
    torch.save(content | {"args": argparse.Namespace(**options)}, tmp_path / "t.pt")
    card = models.load(tmp_path / "t.pt").card
    assert card.architecture == "timm:resnet18"
    assert (card.input_size, card.mean, card.std) == ((3, 64, 64), (0.5,) * 3, (0.25,) * 3)
    assert (card.crop_pct, card.interpolation) == (1.0, "bicubic")  # "random" is no word of ours
    assert "input size, mean, std, crop pct as the options of its training say" in card.source
    assert models.load(tmp_path / "t.pt", mean=(0.1, 0.2, 0.3)).card.mean == (0.1, 0.2, 0.3)
    options |= {"mean": None, "std": [0.2], "img_size": None, "crop_pct": None}
    torch.save(content | {"args": argparse.Namespace(**options)}, tmp_path / "t.pt")
    card = models.load(tmp_path / "t.pt").card
    assert (card.crop_pct, card.mean[0], card.std) == (0.95, 0.485, (0.2, 0.2, 0.2))
    assert "input size, mean as usual for it" in card.source


def test_how_published_figures_are_taken_is_said() -> None:
    card = from_timm.defaults("resnet50", "a1_in1k")
    assert card.advice == "its published figures are taken with --input-size 288 --crop-pct 1"
    assert not from_timm.defaults("test_resnet").advice
    assert from_timm.defaults("tf_efficientnetv2_b3", "in21k_ft_in1k").crop_mode == "squash"


def test_how_pictures_are_cropped_is_kept_in_a_file(tmp_path: Path) -> None:
    for mode in ("center", "squash"):
        made = student()
        models.save(replace(made, card=replace(made.card, crop_mode=mode)), tmp_path / "t.st")
        assert models.load(tmp_path / "t.st").card.crop_mode == mode
    assert models.load(tmp_path / "t.st", crop_mode="center").card.crop_mode == "center"
    # A run that began before there was a choice goes on.
    assert "crop_mode" not in made.card.facts()


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    torch.save(student().module.half().state_dict(), tmp_path / "t.pt")
    module = models.load(tmp_path / "t.pt").module
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_a_pickled_module_loads_when_trusted(tmp_path: Path) -> None:
    torch.save(student().module, tmp_path / "t.pt")
    with pytest.raises(ModelError, match="--trust-pickle"):
        models.load(tmp_path / "t.pt")
    found = models.load(tmp_path / "t.pt", trust_pickle=True, input_size=(1, 16, 16))
    assert found.sha256() == student().sha256()


def test_a_size_without_channels_leaves_them_to_the_weights(tmp_path: Path) -> None:
    torch.save(student().module.state_dict(), tmp_path / "t.pt")
    assert models.load(tmp_path / "t.pt", input_size=(20, 24)).card.input_size == (1, 20, 24)
    with pytest.raises(ModelError, match="for 1 channels, not 3"):
        models.load(tmp_path / "t.pt", input_size=(3, 20, 24))
    named = models.load("resnet18", pretrained=False, input_size=(64, 96)).card
    assert named.input_size == (3, 64, 96)


def test_what_a_file_leaves_unsaid_is_said(tmp_path: Path) -> None:
    torch.save(student().module.state_dict(), tmp_path / "t.pt")
    source = models.load(tmp_path / "t.pt", mean=(0.1,)).card.source
    assert source.endswith("; input size, std as usual for it, since the file does not say")
    models.save(student(), tmp_path / "s.safetensors")
    assert "as usual" not in models.load(tmp_path / "s.safetensors").card.source
    assert "as usual" not in models.load("digits_resnet14").card.source


def test_a_new_head_leaves_all_other_weights(tmp_path: Path) -> None:
    known = student(num_classes=3)
    made = models.with_new_head(known, num_classes=5, seed=1)
    assert made.module(torch.zeros(2, 1, 16, 16)).shape == (2, 5)
    assert (made.card.num_classes, made.card.mean) == (5, known.card.mean)
    old, new = known.module.state_dict(), made.module.state_dict()
    fresh = student(num_classes=5, class_names=(), seed=1).module.state_dict()
    heads = {name for name in old if old[name].shape != new[name].shape}
    assert heads == {"linear.weight", "linear.bias"}
    assert all(torch.equal(new[n], fresh[n] if n in heads else old[n]) for n in new)


def test_arch_is_for_files_and_must_fit(tmp_path: Path) -> None:
    torch.save(student().module.state_dict(), tmp_path / "t.pt")
    with pytest.raises(ModelError, match=r"do not fit: .*missing .*layer1\.1\.conv1"):
        models.load(tmp_path / "t.pt", arch="cifar_resnet20")
    with pytest.raises(ModelError, match="did you mean"):
        models.load(tmp_path / "t.pt", arch="cifar_resnet9")
    with pytest.raises(ModelError, match="is for checkpoint files"):
        models.load("resnet18", arch="resnet18")
    assert models.load(tmp_path / "t.pt", arch="timm:cifar_resnet8").card.num_classes == 3


def test_what_does_not_fit_is_not_the_class_count(tmp_path: Path) -> None:
    module = torchvision.models.resnet18(num_classes=7)
    torch.save(dict(module.named_parameters()), tmp_path / "p.pt")
    line = r"do not fit: 40 missing \(bn1\.running_mean, .*…\); save the state_dict\(\), which"
    for arguments in ({}, {"input_size": (3, 64, 64)}):
        with pytest.raises(ModelError, match=line):
            models.load(tmp_path / "p.pt", arch="resnet18", **arguments)
    module.conv1 = nn.Conv2d(1, 64, 3, bias=False)
    torch.save(module.state_dict(), tmp_path / "s.pt")
    line = (
        r"fit: 1 misshapen \(conv1.weight \[64, 1, 3, 3\] instead of \[64, 1, 7, 7\]\); a network"
    )
    for size in (None, (3, 32, 32)):
        with pytest.raises(ModelError, match=line):
            models.load(tmp_path / "s.pt", arch="resnet18", input_size=size)


def test_what_thop_counted_is_no_part_of_the_network(tmp_path: Path) -> None:
    counted = {"total_ops": torch.zeros(1), "layer1.0.conv1.total_params": torch.zeros(1)}
    torch.save({**student().module.state_dict(), **counted}, tmp_path / "t.pt")
    for arch in (None, "cifar_resnet8"):
        found = models.load(tmp_path / "t.pt", arch=arch, input_size=(1, 16, 16))
        assert found.sha256() == student().sha256()


def test_a_wrong_class_count_is_said(tmp_path: Path) -> None:
    models.save(student(), tmp_path / "s.safetensors")
    with pytest.raises(ModelError, match="3 classes, not 10"):
        models.load(tmp_path / "s.safetensors", num_classes=10)
    models.save(student(), tmp_path / "s.safetensors", extra={"num_classes": "10"})
    with pytest.raises(ModelError, match="3 classes, not 10"):
        models.load(tmp_path / "s.safetensors")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("architecture", "os.system", "no model named 'os.system'"),
        ("num_classes", "many", "metadata num_classes is 'many'"),
        ("num_classes", "9" * 5000, "metadata num_classes"),
        ("input_size", "[1, 1e9, 16]", "metadata input_size"),
        ("input_size", "[1, 99999999, 16]", "input_size is"),
        ("input_size", "[1, 16]", "metadata input_size"),
        ("input_size", "[" * 100_000, "metadata input_size"),
        ("mean", "[NaN]", "mean is"),
        ("mean", "[0.1, 0.2]", "mean is"),
        ("std", "[0]", "std is"),
        ("std", '{"a": 1}', "metadata std"),
        ("crop_pct", "inf", "crop_pct is"),
        ("interpolation", "bicubik", "did you mean 'bicubic'"),
        # What timm trains with and cannot evaluate with; the file is named.
        (
            "interpolation",
            "random",
            r"^interpolation is random; it must .*/s\.safetensors: timm",
        ),
        ("class_names", '["only one"]', "class_names is"),
        ("data_free", "maybe", "metadata data_free"),
    ],
)
def test_hostile_metadata_is_one_line(tmp_path: Path, key: str, value: str, message: str) -> None:
    models.save(student(), tmp_path / "s.safetensors", extra={key: value})
    with pytest.raises(ModelError, match=message) as caught:
        models.load(tmp_path / "s.safetensors")
    assert len(str(caught.value)) < 500


def test_hash_is_of_weights_and_not_of_counters(tmp_path: Path) -> None:
    made = student()
    state = {k: v for k, v in made.module.state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "t.pt")
    assert models.load(tmp_path / "t.pt", input_size=(1, 16, 16)).sha256() == made.sha256()
    with torch.no_grad():
        next(made.module.parameters()).add_(1)
    assert models.load(tmp_path / "t.pt").sha256() != made.sha256()


def test_a_bundled_name_without_weights_keeps_its_architecture() -> None:
    card = models.load("digits_resnet14", pretrained=False, device="meta").card
    assert (card.weights, card.pretrained, card.data_free) == ("random", False, False)
    assert card.input_size == (1, 16, 16)


def test_a_known_name_wins_over_a_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    models.save(student(), "resnet18")
    models.save(student(), "mine")
    named = models.load("resnet18", pretrained=False, device="meta")
    assert named.card.architecture == "torchvision:resnet18"
    assert models.load("mine").card.weights == "file mine"
    assert models.load("./resnet18").card.weights == "file resnet18"


@needs_data
def test_the_public_cifar_teacher_is_recognised() -> None:
    path = Path(str(DATA)) / "teachers" / "resnet20.safetensors"
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    card = models.load(path, mean=mean, std=std).card
    assert card.architecture == "timm:cifar_resnet20"
    assert (card.mean, card.std, card.num_classes) == (mean, std, 10)


@needs_data
def test_lite0_asks_for_the_choice_and_takes_it() -> None:
    path = Path(str(DATA)) / "teachers" / "efficientnet_lite0.safetensors"
    with pytest.raises(ModelError, match="timm:efficientnet_lite0 and timm:tf_efficientnet_lite0"):
        models.load(path)
    card = models.load(path, arch="tf_efficientnet_lite0").card
    assert card.mean == card.std == (0.5, 0.5, 0.5)
    assert card.input_size == (3, 224, 224)


def test_metadata_is_plain_strings_and_json(tmp_path: Path) -> None:
    models.save(student(), tmp_path / "s.safetensors", extra={"licence": "x"})
    with safetensors.safe_open(tmp_path / "s.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert json.loads(metadata["class_names"]) == ["a", "b", "ü"]
    assert json.loads(metadata["input_size"]) == [1, 16, 16]
    assert metadata["licence"] == "x"


def test_the_meta_device_holds_no_weights() -> None:
    module: nn.Module = models.load("vit_giant_patch14_224", pretrained=False, device="meta").module
    assert all(tensor.is_meta for tensor in module.state_dict().values())
    with pytest.raises(ConfigError, match="pretrained=False"):
        models.load("resnet18", device="meta")
