"""Evaluation of networks whose logits are known by hand, and of the reference weights."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from dreamkd.data import ImageSet, Preprocessing, open_images
from dreamkd.data.pictures import Pictures
from dreamkd.errors import DataError, ModelError, RunError
from dreamkd.evaluation import evaluate
from dreamkd.events import Progress
from dreamkd.models import (
    Card,
    Classifier,
    registration,  # noqa: F401  (which timm.create_model then knows)
)


class Greys(Pictures):
    """Pictures of one grey value each."""

    def __init__(self, greys, labels, class_names=()):
        super().__init__(source="greys", class_names=class_names)
        self.greys, self.labels = greys, labels

    def __len__(self):
        return len(self.greys)

    def __getitem__(self, index):
        return Image.new("L", (8, 8), self.greys[index]), self.labels[index]


class Ruler(nn.Module):
    """Logits -|x - c| of class c for a picture whose inputs are x everywhere."""

    def __init__(self, num_classes):
        super().__init__()
        self.centres = nn.Parameter(torch.arange(num_classes).float())
        self.norm = nn.BatchNorm2d(1)
        self.seen = []

    def forward(self, inputs):
        self.seen.append((tuple(inputs.shape), torch.is_grad_enabled(), self.training))
        return -(inputs.mean((1, 2, 3))[:, None] - self.centres).abs()


def ruler(num_classes=6, *, size=4, mean=0.0, names=()) -> Classifier:
    """A Ruler whose inputs are the grey values less 255 * mean."""
    card = Card(
        architecture="timm:ruler", weights="random", source="by hand", num_classes=num_classes,
        class_names=names, input_size=(1, size, size), mean=(mean,), std=(1 / 255,),
        interpolation="bilinear", crop_pct=1.0, parameters=num_classes + 2, pretrained=False,
    )  # fmt: skip
    return Classifier(Ruler(num_classes).eval(), card)


def greys(values, labels, *, like: Classifier, names=()) -> ImageSet:
    return ImageSet(Greys(values, labels, names), Preprocessing.of(like.card))


def test_accuracy_loss_and_classes_by_hand():
    network = ruler()
    # guesses 0, 1, 1, 5; the grey 5 leaves class 0 as the sixth guess
    result = evaluate(network, greys([0, 1, 1, 5], [0, 1, 2, 0], like=network))
    assert (result.top1, result.top5, result.count) == (50.0, 75.0, 4)
    assert result.agreement is None
    assert [(row.name, row.count, row.top1) for row in result.per_class] == [
        ("0", 2, 50.0),
        ("1", 1, 100.0),
        ("2", 1, 0.0),
    ]
    ends = math.log(sum(math.exp(-d) for d in (0, 1, 2, 3, 4, 5)))  # grey 0 and 5
    inner = math.log(sum(math.exp(-d) for d in (1, 0, 1, 2, 3, 4)))  # grey 1
    expected = (ends + inner + (inner + 1) + (ends + 5)) / 4
    assert result.loss == pytest.approx(expected, rel=1e-6)
    assert json.loads(json.dumps(result.to_json()))["per_class"][0] == {
        "name": "0",
        "count": 2,
        "top1": 50.0,
    }


def test_the_teacher_sees_its_own_preprocessing():
    network, teacher = ruler(), ruler(size=6, mean=1 / 255)  # the teacher reads one less
    values = [0, 1, 2, 3]
    result = evaluate(
        network, greys(values, values, like=network), teacher=teacher, batch_size=3, workers=2
    )
    assert (result.top1, result.agreement) == (100.0, 25.0)  # both say 0 to grey 0 only
    # First a blank image, by which the layout is decided.
    assert [shape for shape, *_ in network.module.seen] == [(n, 1, 4, 4) for n in (1, 3, 1)]
    assert [shape for shape, *_ in teacher.module.seen] == [(n, 1, 6, 6) for n in (1, 3, 1)]
    assert not any(any(flags) for _, *flags in network.module.seen + teacher.module.seen)
    assert evaluate(network, greys(values, values, like=network), teacher=ruler()).agreement == 100


def test_nothing_depends_on_the_batch_size():
    network = ruler()
    images = greys([k % 6 for k in range(23)], [k % 5 for k in range(23)], like=network)
    whole, parts = (evaluate(network, images, batch_size=size, workers=2) for size in (23, 4))
    assert whole.loss == pytest.approx(parts.loss, rel=1e-6)
    assert (whole.top1, whole.top5, whole.per_class) == (parts.top1, parts.top5, parts.per_class)


def test_progress_after_every_batch():
    events = []
    network = ruler()
    evaluate(network, greys([0] * 5, [0] * 5, like=network), batch_size=2, on_event=events.append)
    assert events == [Progress("evaluate", done, 5, "images") for done in (2, 4, 5)]


@pytest.mark.parametrize("label", [0, 9])
def test_the_network_is_put_back(label):
    network = ruler()
    network.module.train()
    network.module.norm.eval()
    images = greys([0], [label], like=network)
    if label == 9:
        with pytest.raises(DataError, match="greys holds label 9, but timm:ruler has classes 0 to"):
            evaluate(network, images)
    else:
        assert evaluate(network, images).top1 == 100.0
    assert network.module.training
    assert not network.module.norm.training
    assert network.module.centres.requires_grad


def test_out_of_memory_it_says_what_to_lower(monkeypatch):
    def forward(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    network = ruler()
    monkeypatch.setattr(network.module, "forward", forward)
    with pytest.raises(RunError, match="the device ran out of memory: lower --batch-size"):
        evaluate(network, greys([0], [0], like=network))


def test_class_names_of_the_network_come_first():
    network = ruler(2, names=("zero", "one"))
    result = evaluate(network, greys([1], [1], like=network, names=("0 - zero", "1 - one")))
    assert [row.name for row in result.per_class] == ["one"]
    result = evaluate(ruler(2), greys([1], [1], like=network, names=("a", "b")))
    assert [row.name for row in result.per_class] == ["b"]


def test_names_tell_the_labels_whatever_their_order_and_number():
    """Class folders are in alphabetical order; a network's classes need not be."""
    network = ruler(3, names=("cat", "dog", "ant"))
    images = greys([0, 1, 2, 2], [1, 2, 0, 0], like=network, names=("ant", "cat", "dog"))
    assert evaluate(network, images.labelled_by(network.card)).top1 == 100.0
    some = greys([2, 0], [0, 1], like=network, names=("ant", "cat")).labelled_by(network.card)
    found = evaluate(network, some)
    assert (found.top1, [row.name for row in found.per_class]) == (100.0, ["cat", "ant"])
    unknown = greys([0], [0], like=network, names=("a", "b", "c"))
    assert unknown.labelled_by(network.card) == unknown


def test_a_class_that_the_network_does_not_name_is_refused():
    network = ruler(3, names=("cat", "dog", "ant"))
    with pytest.raises(
        DataError, match=r"greys: 'cats' names no class .* \(did you mean 'cat'\?\)"
    ):
        greys([0], [0], like=network, names=("ant", "cats", "dog")).labelled_by(network.card)
    twice = ruler(3, names=("crane", "dog", "crane"))
    with pytest.raises(DataError, match="'crane' names two classes of timm:ruler"):
        greys([0], [0], like=twice, names=("crane", "dog")).labelled_by(twice.card)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("a", "b", "c"), r"greys has 3 classes \(a, b, c\), but timm:ruler has 2"),
        (
            ("dog", "cat"),
            r"^greys: its classes are in another order \(dog, cat\) than those of timm:ruler "
            r"\(cat, dog\): a label would mean two things$",
        ),
    ],
)
def test_other_classes_are_refused(names, says):
    network = ruler(2, names=("cat", "dog"))
    with pytest.raises(DataError, match=says):
        evaluate(network, greys([0], [0], like=network, names=names))
    assert network.module.seen == []


def test_a_negative_label_is_refused():
    network = ruler()
    with pytest.raises(DataError, match="greys holds label -1"):
        evaluate(network, greys([0], [-1], like=network))


def test_networks_that_do_not_fit_are_refused():
    network = ruler()
    images = greys([0], [0], like=network)
    with pytest.raises(
        ModelError, match=r"teacher timm:ruler has 5 classes, but the model .*ruler has 6"
    ):
        evaluate(network, images, teacher=ruler(5))
    named, others = ruler(2, names=("cat", "dog")), ruler(2, names=("dog", "cat"))
    with pytest.raises(ModelError, match=r"teacher timm:ruler: its classes are in another order"):
        evaluate(named, greys([0], [0], like=named), teacher=others)
    colour = replace(images, preprocessing=Preprocessing(input_size=(3, 4, 4)))
    with pytest.raises(DataError, match=r"preprocessed to 3 channels, but timm:ruler takes 1"):
        evaluate(network, colour)


def test_logits_that_are_not_finite_are_refused():
    network = ruler()
    with torch.no_grad():
        network.module.centres[3] = math.nan
    with pytest.raises(ModelError, match=r"timm:ruler gives logits that are not finite on greys"):
        evaluate(network, greys([0], [0], like=network))


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_precision_is_that_of_matrix_products(precision, dtype):
    network = ruler()
    linear = nn.Linear(16, 6)
    found = []
    linear.register_forward_hook(lambda *call: found.append(call[2].dtype))
    network = Classifier(nn.Sequential(nn.Flatten(), linear).eval(), network.card)
    evaluate(network, greys([0], [0], like=network), precision=precision)
    assert set(found) == {dtype}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_as_on_the_cpu():
    network = ruler()
    images = greys([k % 6 for k in range(50)], [k % 5 for k in range(50)], like=network)
    here, there = (evaluate(network, images, teacher=ruler(), device=d) for d in ("cpu", "cuda"))
    assert (here.top1, here.top5, here.per_class) == (there.top1, there.top5, there.per_class)
    assert here.loss == pytest.approx(there.loss, rel=1e-6)
    assert network.module.centres.device.type == "cpu"


def reference(architecture: str, file: str, *, like: Card) -> Classifier:
    """A network of the reference data, loaded without our own loader."""
    module = timm.create_model(architecture, num_classes=like.num_classes)
    weights = load_file(Path(os.environ["DREAMKD_DATA"]) / "teachers" / file)
    lacking = module.load_state_dict(weights, strict=False)
    assert not lacking.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in lacking.missing_keys)
    return Classifier(module.eval(), like)


CIFAR = Card(
    architecture="timm:cifar", weights="file", source="", num_classes=10, input_size=(3, 32, 32),
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bicubic", crop_pct=1.0,
    parameters=0, pretrained=True,
)  # fmt: skip
LITE0 = Card(
    architecture="timm:tf_efficientnet_lite0", weights="file", source="", num_classes=1000,
    input_size=(3, 224, 224), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic",
    crop_pct=0.875, parameters=0, pretrained=True,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif("DREAMKD_DATA" not in os.environ, reason="DREAMKD_DATA is not set")
@pytest.mark.parametrize(
    ("architecture", "file", "card", "images", "top1", "tolerance"),
    [
        ("cifar_resnet20", "resnet20", CIFAR, "cifar10/test.tar", 91.73, 0.05),
        ("cifar_resnet32", "resnet32", CIFAR, "cifar10/test.tar", 92.63, 0.05),
        ("tf_efficientnet_lite0", "efficientnet_lite0", LITE0, "imagenet-sample/*.tar", 87.0, 1.0),
    ],
)
def test_reference_weights_reach_their_published_accuracy(
    architecture, file, card, images, top1, tolerance
):
    network = reference(architecture, f"{file}.safetensors", like=card)
    spec = f"{os.environ['DREAMKD_DATA']}/{images}"
    result = evaluate(network, open_images(spec, preprocessing=Preprocessing.of(card)))
    assert result.top1 == pytest.approx(top1, abs=tolerance)
