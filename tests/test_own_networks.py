"""Networks as people write them: whatever runs in torch is inverted, distilled and evaluated."""

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import dreamkd
from dreamkd.data import Preprocessing, open_images
from dreamkd.engine import Runtime, fixed
from dreamkd.engine.modules import lay_out
from dreamkd.errors import ModelError, NoBatchNormError, RunError
from dreamkd.evaluation import evaluate
from dreamkd.models import Classifier
from tests.conftest import PLAIN

QUICK = {**PLAIN, "image_steps": 2, "image_batch_size": 6}
SHORT = {
    **PLAIN,
    "image_steps": 2,
    "image_batch_size": 10,
    "rounds": 0,
    "first_batches": 1,
    "steps": 2,
}
STUDENT = {"first_batches": 1, "steps": 4, "batch_size": 4, "images": "pixels"}


class Textbook(nn.Module):
    """Two convolutions; flattened as tutorials do, which asks for the usual layout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        return self.fc(x.view(-1, 8 * 4 * 4))


class ViewedFirst(Textbook):
    """Flattens the images themselves."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(len(x), -1).view(-1, 3, 12, 12))


class AsksItsLayers(Textbook):
    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.bn1, nn.BatchNorm2d)
        assert self.bn1.num_features == self.conv1.out_channels
        return super().forward(x)


class CallsByName(Textbook):
    def forward(self, x: Tensor) -> Tensor:
        x = self.bn2(input=self.conv2(self.bn1(input=self.conv1(x))))
        return self.fc(F.max_pool2d(x, 2).flatten(1))


class KeepsAList(Textbook):
    def __init__(self) -> None:
        super().__init__()
        self.order = [self.conv1, self.bn1, F.relu, self.conv2, self.bn2]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.order:
            x = layer(x)
        return self.fc(F.max_pool2d(x, 2).flatten(1))


class PartlyFunctional(Textbook):
    def forward(self, x: Tensor) -> Tensor:
        x, bn = self.bn1(self.conv1(x)), self.bn2
        x = F.batch_norm(
            self.conv2(x),
            bn.running_mean,
            bn.running_var,
            bn.weight,
            bn.bias,
            bn.training,
            bn.momentum,
            bn.eps,
        )
        return self.fc(F.max_pool2d(x, 2).flatten(1))


class ChangesItsInput(Textbook):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5))


KINDS = (
    Textbook,
    ViewedFirst,
    AsksItsLayers,
    CallsByName,
    KeepsAList,
    PartlyFunctional,
    ChangesItsInput,
)
CIFAR = "cifar10_resnet20"
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def trained(kind: Callable[[], nn.Module]) -> Classifier:
    """With statistics of noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = kind().train()
        for _ in range(3):
            module(torch.randn(8, 3, 12, 12))
    size, half = (3, 12, 12), (0.5, 0.5, 0.5)
    return Classifier.of(module, name="mine", num_classes=3, input_size=size, mean=half, std=half)


@kinds
def test_it_is_inverted(kind: type[nn.Module], tmp_path: Path) -> None:
    network = trained(kind)
    run = dreamkd.invert(network, per_class=2, out=tmp_path / "run", **QUICK)
    assert len([*dreamkd.read(run)]) == 6


@kinds
def test_the_fixed_copy_computes_the_same(kind: type[nn.Module]) -> None:
    network = trained(kind).module.eval()
    x = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    copy = fixed(network, runtime=Runtime("cpu", "fp32", 1), input_size=(3, 12, 12))
    given = x.clone().contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.allclose(copy(given), network(x), atol=1e-5)


@pytest.mark.parametrize("kind", [Textbook, ViewedFirst, KeepsAList])
def test_it_learns_competes_and_is_evaluated(kind: type[nn.Module], tmp_path: Path) -> None:
    teacher, student = trained(AsksItsLayers), trained(kind)
    found = dreamkd.distill(teacher, student, rounds=2, out=tmp_path / "run", **QUICK, **STUDENT)
    assert found.steps == 4
    pictures = open_images(str(tmp_path / "run"), preprocessing=Preprocessing.of(student.card))
    strides = [weight.stride() for weight in student.module.parameters()]
    assert evaluate(student, pictures, device="cpu").count == found.images
    assert [weight.stride() for weight in student.module.parameters()] == strides
    assert not student.module._forward_pre_hooks


def test_channels_come_last_where_the_network_bears_it() -> None:
    for kind, last in ((AsksItsLayers, False), (KeepsAList, True)):
        module = trained(kind).module
        undo = lay_out(module, (3, 12, 12))
        weight = module.conv2.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) is last
        where = weight.data_ptr()
        lay_out(module, (3, 12, 12))()
        assert weight.data_ptr() == where  # recorded steps read it there
        undo()
        assert weight.is_contiguous()
        assert not module._forward_pre_hooks


def test_layers_that_are_never_called_are_named_as_the_reason(tmp_path: Path) -> None:
    class Functional(Textbook):
        def forward(self, x: Tensor) -> Tensor:
            for conv, bn in ((self.conv1, self.bn1), (self.conv2, self.bn2)):
                x = F.batch_norm(conv(x), bn.running_mean, bn.running_var)
            return self.fc(F.max_pool2d(x, 2).flatten(1))

    network = trained(Textbook)
    network.module.__class__ = Functional
    with pytest.raises(NoBatchNormError, match="none of its 2 batch-norm layers runs"):
        dreamkd.invert(network, per_class=2, out=tmp_path / "run", **QUICK)
    run = dreamkd.invert(network, method="deepdream", per_class=2, out=tmp_path / "run", **QUICK)
    assert len([*dreamkd.read(run)]) == 6


class DropsAndPools(Textbook):
    """Whatever would betray a pass in training mode: random draws, statistics, one value each."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.last = nn.Dropout(0.5), nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.head(self.drop(self.last(x.mean((2, 3)))))


def state(module: nn.Module) -> list[object]:
    """All of a network that its owner may rely on."""
    learning = [parameter.requires_grad for parameter in module.parameters()]
    values = [(t.data_ptr(), t.dtype, t.tolist()) for t in module.state_dict().values()]
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in module.modules()]
    return [[m.training for m in module.modules()], learning, values, hooks]


COMMANDS: dict[str, Callable[[Classifier, Path], object]] = {
    "inspect": lambda net, _: dreamkd.inspect(net),
    "evaluate": lambda net, out: dreamkd.evaluate(net, pictures(out), teacher=net),
    "invert": lambda net, out: dreamkd.invert(
        net, per_class=2, out=out, **{**QUICK, "compile": "auto"}
    ),
    "in chunks": lambda net, out: dreamkd.invert(
        net, per_class=2, out=out, image_chunk=3, **{**QUICK, "compile": "auto"}
    ),
    "deepdream": lambda net, out: dreamkd.invert(
        net, method="deepdream", per_class=2, out=out, **QUICK
    ),
    "distill": lambda net, out: dreamkd.distill(net, net, rounds=1, out=out, **QUICK, **STUDENT),
}


def pictures(folder: Path) -> Path:
    for name in "abc":
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (12, 12)).save(folder / name / "0.png")
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_a_network_stays_as_it_is_in_whatever_mode_it_is(name: str, tmp_path: Path) -> None:
    network, before = trained(DropsAndPools), torch.get_rng_state()
    network.module.train().conv1.weight.requires_grad_(False)
    network.module.bn2.eval()
    was = state(network.module)
    COMMANDS[name](network, tmp_path / "run")
    assert state(network.module) == was
    assert torch.equal(torch.get_rng_state(), before)


def test_images_do_not_depend_on_the_mode(tmp_path: Path) -> None:
    network, made = trained(DropsAndPools), []
    for number, module in enumerate((network.module.train(), network.module.eval())):
        out = tmp_path / str(number)
        dreamkd.invert(replace(network, module=module), per_class=2, out=out, **QUICK)
        made.append((out / "shards" / "shard-000000.tar").read_bytes())
        network.module.train(number == 1)
    assert made[0] == made[1]


def test_what_was_compiled_is_inverted_like_what_was_not(tmp_path: Path) -> None:
    network, made = trained(Textbook), []
    parts = trained(Textbook)
    parts.module.bn1 = torch.compile(parts.module.bn1, backend="eager")
    whole = replace(network, module=torch.compile(network.module, backend="eager"))
    for number, each in enumerate((network, parts, whole)):
        run = dreamkd.invert(each, per_class=2, out=tmp_path / str(number), **QUICK)
        made.append([image for image, _, _ in dreamkd.read(run)])
    assert all(torch.equal(torch.stack(made[0]), torch.stack(images)) for images in made[1:])
    found = dreamkd.distill("digits_resnet14", own_digits(whole=True), out=tmp_path / "d", **SHORT)
    assert not any("_orig_mod" in name for name in load_file(found.student))


def test_a_file_of_it_is_not_taken_for_a_network_of_that_name(tmp_path: Path) -> None:
    found = dreamkd.distill("digits_resnet14", own_digits(), out=tmp_path / "run", **SHORT)
    line = r"holds weights of a network that was given in Python, 'cifar_resnet8', .*Classifier\.of"
    with pytest.raises(ModelError, match=line):
        dreamkd.load(found.student)
    assert dreamkd.load(found.student, arch="cifar_resnet8").card.num_classes == 10
    module = own_digits().module
    module.load_state_dict(load_file(found.student))


def own_digits(*, whole: bool = False) -> Classifier:
    """A student for digits under the name of a library's network."""
    known = dreamkd.load("cifar_resnet8", pretrained=False, num_classes=10, input_size=(1, 16, 16))
    module = torch.compile(known.module, backend="eager") if whole else known.module
    card = {"num_classes": 10, "input_size": (1, 16, 16), "mean": 0.3, "std": 0.35}
    return Classifier.of(module, name="cifar_resnet8", **card)


class Squeezes(KeepsAList):
    """Of one image it loses the first dimension too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


class NormsVectors(Squeezes):
    """Its batch norm takes rows, of which one image then is none."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (Squeezes, "gives 3 for 1 image of 3x12x12, not a row of 3 logits"),
        (NormsVectors, "does not run on 1 image of 3x12x12: expected 2D or 3D input"),
    ],
)
def test_a_network_that_needs_two_images_is_refused(
    kind: type[nn.Module], line: str, tmp_path: Path
) -> None:
    network = trained(kind)
    with pytest.raises(ModelError, match=f"^own:mine {line}"):
        dreamkd.invert(network, per_class=2, out=tmp_path / "run", **QUICK)
    with pytest.raises(ModelError, match=f"^own:mine {line}"):
        dreamkd.distill(trained(Textbook), network, out=tmp_path / "run", **QUICK, **STUDENT)
    assert not (tmp_path / "run").exists()


class FixedHead(Textbook):
    """Runs at one size alone."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8 * 12 * 12, 3)

    def forward(self, x: Tensor) -> Tensor:
        for conv, bn in ((self.conv1, self.bn1), (self.conv2, self.bn2)):
            x = F.pad(F.relu(bn(conv(x))), (1, 1, 1, 1))
        return self.fc(x.flatten(1))


@pytest.mark.parametrize(("side", "stages", "failing"), [(24, "1,1", "24x24"), (12, "1,1", "6x6")])
def test_every_stage_is_tried_before_the_run(
    side: int, stages: str, failing: str, tmp_path: Path
) -> None:
    network = trained(FixedHead)
    sized = replace(network, card=replace(network.card, input_size=(3, side, side)))
    with pytest.raises(ModelError, match=f"^own:mine does not run on 2 images of 3x{failing}: "):
        dreamkd.invert(sized, stages=stages, per_class=2, out=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


class Doubles(KeepsAList):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 2)


class DoublesInPlace(KeepsAList):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2))


def test_others_see_the_images_that_a_network_changed(tmp_path: Path) -> None:
    """A prior, a rival, and a teacher that comes after its student."""
    made = []
    for kind in (Doubles, DoublesInPlace):
        teacher, out = trained(kind), tmp_path / kind.__name__
        how = {"jitter": 0, **QUICK}
        run = dreamkd.invert(teacher, bn_prior=CIFAR, per_class=2, out=out / "images", **how)
        images = [image for image, _, _ in dreamkd.read(run)]
        found = dreamkd.distill(teacher, trained(kind), rounds=1, out=out / "d", **how, **STUDENT)
        images += [image for image, _, _ in dreamkd.read(found)]
        made.append([*images, *load_file(found.student).values()])
    assert len(made[0]) == len(made[1])
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


def test_a_network_does_in_every_part_what_its_name_does(tmp_path: Path) -> None:
    def made(network: Classifier | str, out: Path) -> list[object]:
        beside = {"student": network, "bn_prior": network, "verifier": [network, network]}
        how = {"method": "adaptive", "competition": 1.0, "per_class": 1, **QUICK, **beside}
        run = dreamkd.invert("digits_resnet14", out=out / "images", **how)
        facts = json.loads((out / "images" / "resolved.json").read_text())
        return [
            *(image.tolist() for image, _, _ in dreamkd.read(run)),
            *(facts[f"{part}_sha256"] for part in ("teacher", "student", "bn_prior")),
            [*run.verifiers.values()],
        ]

    network = dreamkd.load("digits_resnet14")
    assert made(network, tmp_path / "own") == made("digits_resnet14", tmp_path / "named")


def test_own_networks_may_judge_together(tmp_path: Path) -> None:
    """Those of one name are told apart by number."""
    teacher, other = trained(Textbook), trained(Doubles)
    other = replace(other, card=replace(other.card, architecture="own:other"))
    how = {"per_class": 2, "out": tmp_path / "run", **QUICK}
    run = dreamkd.invert(teacher, verifier=[other, teacher, teacher], **how)
    assert run.verifiers.keys() == {"other", "mine", "mine-2"}
    assert run.verifiers["mine-2"] == run.teacher_top1
    assert dreamkd.invert(teacher, verifier=(other, teacher, teacher), **how).images == 6
    with pytest.raises(RunError, match="verifier is"):
        dreamkd.invert(teacher, verifier=[teacher, other, teacher], **how)


class NormsAParameter(Textbook):
    """Its third batch norm is called on five rows, whatever the images."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.of_rows = nn.Parameter(torch.randn(5, 8)), nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn2(self.conv2(self.bn1(self.conv1(x)))).mean((2, 3))
        return self.head(x + self.of_rows(self.rows).mean(0))


class Cuts(Textbook):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class InsistsOnLayout(Textbook):
    def forward(self, x: Tensor) -> Tensor:
        assert x.is_contiguous()
        return super().forward(x)


@pytest.mark.parametrize("kind", [NormsAParameter, InsistsOnLayout])
def test_odd_habits_do_not_hinder(kind: type[nn.Module], tmp_path: Path) -> None:
    found = dreamkd.invert(trained(kind), per_class=2, out=tmp_path / "run", **QUICK)
    assert found.images == 6


@pytest.mark.parametrize("method", ["deepdream", "deepinversion"])
def test_no_image_is_formed_without_a_gradient(method: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^own:mine: no gradient of its logits reaches the image"):
        dreamkd.invert(trained(Cuts), method=method, per_class=2, out=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


def test_statistics_that_are_no_numbers_are_not_measured(tmp_path: Path) -> None:
    network, out = trained(Textbook), tmp_path / "run"
    network.module.bn1.running_var[0] = torch.inf
    with pytest.raises(NoBatchNormError, match="bn1: variance is NaN or infinite in 1 channels"):
        dreamkd.invert(network, per_class=2, out=out, **QUICK)
    assert dreamkd.invert(network, method="deepdream", per_class=2, out=out, **QUICK).r_feature == 0


def test_a_buffer_that_a_pass_changes_stays(tmp_path: Path) -> None:
    class Counts(Textbook):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("passes", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.passes += 1
            return super().forward(x)

    network = trained(Counts)
    before = float(network.module.passes)
    for _ in range(2):  # it is the same network for the run it made
        dreamkd.invert(network, per_class=2, out=tmp_path / "run", **QUICK)
    assert float(network.module.passes) == before


def bound(kind: type[nn.Module]) -> Classifier:
    """With a forward that is a function of this very instance."""
    network = trained(kind)
    module, plain = network.module, network.module.forward
    module.forward = lambda x: plain(x) * 2
    return network


def test_a_forward_of_one_instance_is_refused() -> None:
    network = bound(DropsAndPools)
    was = state(network.module)
    with pytest.raises(ModelError, match=r"^own:mine: the forward of an instance computes wit"):
        dreamkd.inspect(network)
    assert state(network.module) == was


def test_a_forward_of_no_instance_is_borne(tmp_path: Path) -> None:
    network = trained(DropsAndPools)
    network.module.drop.forward = lambda x: x
    assert dreamkd.inspect(network).invertible


class Clamps(KeepsAList):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clamp_(-1.5, 1.5))


def test_images_that_are_clamped_in_place_are_a_network_s_own() -> None:
    for kind, hooks in ((Clamps, 1), (KeepsAList, 0)):
        module = trained(kind).module.eval()
        undo = lay_out(module, (3, 12, 12))
        assert len(module._forward_pre_hooks) == hooks
        undo()
        assert not module._forward_pre_hooks


class Rotates(KeepsAList):
    """Holds a table of complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.polar(torch.ones(12), torch.arange(12.0)))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.table.imag)


def test_complex_tables_stay_complex(tmp_path: Path) -> None:
    assert dreamkd.invert(trained(Rotates), per_class=2, out=tmp_path / "run", **QUICK).images == 6


def test_weights_that_wait_for_their_shape_are_refused() -> None:
    card = {"num_classes": 2, "input_size": (3, 4, 4), "mean": 0.5, "std": 0.5}
    with pytest.raises(ModelError, match="wait for their shape; run it once before"):
        Classifier.of(nn.Sequential(nn.LazyConv2d(2, 1)), name="mine", **card)


def test_any_name_will_do(tmp_path: Path) -> None:
    network = trained(Textbook)
    named = replace(network, card=replace(network.card, architecture="own:a:"))
    assert dreamkd.invert(named, per_class=2, out=tmp_path / "run", **QUICK).images == 6


def test_torchscript_is_refused_in_one_line() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is of the past
        module = torch.jit.trace(Textbook().eval(), torch.zeros(1, 3, 12, 12))
    with pytest.raises(ModelError, match="TorchScript shows no layers"):
        trained(lambda: module)


def test_the_global_random_stream_stays(tmp_path: Path) -> None:
    teacher, before = trained(KeepsAList), torch.get_rng_state()
    dreamkd.invert(teacher, per_class=2, out=tmp_path / "images", **QUICK)
    dreamkd.distill(teacher, "cifar_resnet8", rounds=1, out=tmp_path / "run", **QUICK, **STUDENT)
    assert torch.equal(torch.get_rng_state(), before)
