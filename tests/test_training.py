"""The student's loop: it learns, every option counts, and it resumes to the bit."""

import copy
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, nn

from dreamkd import models
from dreamkd.config import settle
from dreamkd.distributed import Workers
from dreamkd.engine import Runtime, WeightAverage, optimizer
from dreamkd.errors import DivergedError
from dreamkd.examples import Examples
from dreamkd.models import Classifier
from dreamkd.training import Training
from dreamkd.views import view
from tests.conftest import distill_config


def fresh(seed: int = 0) -> Classifier:
    return models.create(
        "cifar_resnet8",
        num_classes=10,
        input_size=(1, 16, 16),
        mean=(0.3,),
        std=(0.3,),
        seed=seed,
    )


def examples(count: int = 40) -> Examples:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 16, 16), dtype=torch.uint8, generator=generator)
    return Examples(images, torch.arange(count) % 10)


def training(teacher: Classifier, **given: object) -> Training:
    config = settle(distill_config(**given), input_size=(1, 16, 16))
    return Training(fresh(), teacher, config, runtime=Runtime.settle(config))


def weights(run: Training) -> dict[str, Tensor]:
    return run.student.module.state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_the_student_comes_to_agree_with_the_teacher(digits: Classifier) -> None:
    seen: list[float] = []
    with training(digits, steps=100, lr=0.05) as run:
        run.advance(examples(), until=100, on_step=lambda _, terms: seen.extend(terms.values()))
    assert seen[-1] < 0.6 * seen[0]
    assert not run.student.module.training


@pytest.mark.parametrize(
    "given",
    [{}, {"momentum": 0.0}, {"optimizer": "adamw"}, {"ema": 0.9, "cutmix": 0.5}],
    ids=str,
)
def test_resumed_equals_uninterrupted_to_the_bit(
    digits: Classifier, given: dict[str, object]
) -> None:
    with training(digits, **given) as whole:
        whole.advance(examples(), until=12)
    with training(digits, **given) as first:
        first.advance(examples(), until=5)
        tensors, facts = first.state()
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    with training(digits, **given) as second:
        second.restore(tensors, facts)
        assert (second.step, second.seconds) == (5, first.seconds)
        assert second.seconds > 0
        second.advance(examples(), until=12)
    assert same(weights(whole), weights(second))
    assert same(whole.state()[0], second.state()[0])
    assert same(
        whole.result(examples()).module.state_dict(), second.result(examples()).module.state_dict()
    )


@dataclass(frozen=True)
class Thread(Workers):
    """A worker that meets the others of its process."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2))
    said: dict[int, list[Tensor]] = field(default_factory=dict)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """As the connected processes do."""
        self.said[self.rank] = [tensor.clone() for tensor in tensors]
        self.barrier.wait(60)
        for tensor, *others in zip(tensors, *self.said.values(), strict=True):
            tensor.copy_(sum(others) / self.world_size)
        self.barrier.wait(60)

    def any(self, value: bool) -> bool:
        """Nobody of one process is gone without the others."""
        return value


def shared(
    digits: Classifier, student: Classifier, *, until: int = 6, **given: object
) -> list[Training]:
    """Two workers that trained a student together."""
    config = settle(distill_config(**given), input_size=(1, 16, 16))
    leader = Thread(0, 2)
    workers = (leader, replace(leader, rank=1))
    runtime = Runtime.settle(config)
    runs = [Training(student.copy(), digits, config, runtime=runtime, workers=w) for w in workers]
    with runs[0], runs[1], ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda run: run.advance(examples(), until=until), runs))
    return runs


def linear() -> Classifier:
    """A network whose images do not see each other: it holds no batch norm."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 10))
    card = {"input_size": (1, 16, 16), "num_classes": 10, "mean": (0.3,), "std": (0.3,)}
    return Classifier.of(module, name="linear", **card)


@pytest.mark.parametrize("given", [{}, {"cutmix": 1.0, "hard_labels": 0.5}], ids=str)
def test_two_workers_take_the_steps_of_one(digits: Classifier, given: dict[str, object]) -> None:
    config = settle(distill_config(**given), input_size=(1, 16, 16))
    with Training(linear(), digits, config, runtime=Runtime.settle(config)) as alone:
        alone.advance(examples(), until=6)
    first, second = shared(digits, linear(), **given)
    assert same(weights(first), weights(second))
    for name, value in weights(alone).items():
        assert torch.allclose(weights(first)[name], value, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(weights(first)["1.weight"], linear().module[1].weight, atol=1e-4)


def test_workers_hold_one_student_with_its_running_statistics(digits: Classifier) -> None:
    first, second = shared(digits, fresh(), ema=0.9)
    assert same(first.state()[0], second.state()[0])
    once, _ = shared(digits, fresh(), until=1)
    with training(digits) as alone:
        alone.advance(examples(), until=1)
    # The first layer's mean is that of the parts' means; each part varies less than the whole.
    found, wanted = (weights(run)["bn1.running_mean"] for run in (once, alone))
    assert torch.allclose(found, wanted, atol=1e-6)
    found, wanted = (weights(run)["bn1.running_var"] for run in (once, alone))
    assert (found < wanted + 1e-2).all()
    assert torch.allclose(found, wanted, rtol=0.05)


def test_every_worker_drops_other_units(digits: Classifier) -> None:
    module = torch.nn.Sequential(torch.nn.Dropout(0.5), *linear().module)
    student = Classifier(module, linear().card)
    config = settle(distill_config(), input_size=(1, 16, 16))
    runtime = Runtime.settle(config)
    seeds = {
        Training(student.copy(), digits, config, runtime=runtime, workers=w)._dropout_seed(0)
        for w in (Workers(), Workers(0, 2), Workers(1, 2))
    }
    assert len(seeds) == 2  # the leader's are those of a process alone


def test_no_stream_of_another_device_is_seeded(
    digits: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`torch.manual_seed` would seed those of all GPUs, which the caller may draw from."""
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    monkeypatch.setattr(torch.cuda, "manual_seed", seeded.append)
    with training(digits) as run:
        run.advance(examples(), until=2)
    assert seeded == []


def test_restart_forgets_everything(digits: Classifier) -> None:
    with training(digits) as run:
        run.advance(examples(), until=12)
        once = {name: tensor.clone() for name, tensor in weights(run).items()}
        run.restart()
        assert run.step == 0
        assert same(weights(run), fresh().module.state_dict())
        run.advance(examples(), until=12)
    assert same(weights(run), once)


@pytest.mark.parametrize(
    "option",
    [
        {"lr": 0.01},
        {"momentum": 0.5},
        {"weight_decay": 0.1},
        {"warmup": 5},
        {"temperature": 1.0},
        {"batch_size": 8},
        {"seed": 1},
        {"flip": "on"},
        {"steps": 13},
        {"optimizer": "adamw", "lr": 0.1},
        {"cutmix": 1.0},
        {"hard_labels": 0.5},
        {"precision": "bf16"},
    ],
    ids=str,
)
def test_no_student_option_is_without_effect(digits: Classifier, option: dict[str, object]) -> None:
    trained = []
    for given in ({}, option):
        with training(digits, **given) as run:
            run.advance(examples(), until=6)
        trained.append(weights(run))
    assert not same(*trained)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_norms_and_biases_do_not_decay(name: str) -> None:
    network = fresh()
    config = replace(distill_config(optimizer=name, weight_decay=0.25), lr=0.5)
    made = optimizer(network.module, config)
    decayed = {id(p): group["weight_decay"] for group in made.param_groups for p in group["params"]}
    want = {id(p): 0.25 if p.ndim > 1 else 0.0 for p in network.module.parameters()}
    assert decayed == want
    assert {group["lr"] for group in made.param_groups} == {0.5}
    if name == "sgd":
        assert all(group["nesterov"] for group in made.param_groups)


def test_hard_labels_add_their_cross_entropy_by_hand(digits: Classifier) -> None:
    """One image, always the same view, of a teacher that the temperature makes indifferent."""
    one = Examples(torch.full((1, 1, 16, 16), 128, dtype=torch.uint8), torch.tensor([3]))
    found: dict[tuple[float, float], dict[str, float]] = {}
    for weight, smoothing in ((0.0, 0.0), (2.0, 0.0), (2.0, 0.5)):
        seen: list[dict[str, float]] = []
        given = {"hard_labels": weight} | ({"label_smoothing": smoothing} if smoothing else {})
        with training(digits, steps=1, warmup=0, **given) as run:
            module = copy.deepcopy(run.student.module).train()
            run.advance(one, until=1, on_step=lambda _, terms, to=seen: to.append(terms))
        found[weight, smoothing] = seen[0]
    inputs = torch.full((16, 1, 16, 16), (128 / 255 - 0.3) / 0.3)
    logs = module(inputs).log_softmax(1)[0].detach()
    target = torch.full((10,), 0.05)
    target[3] += 0.5
    assert len({terms["kd"] for terms in found.values()}) == 1
    assert found[0.0, 0.0].keys() == {"kd"}
    assert found[2.0, 0.0]["hard_labels"] == pytest.approx(-2 * float(logs[3]), rel=1e-3)
    assert found[2.0, 0.5]["hard_labels"] == pytest.approx(-2 * float(target @ logs), rel=1e-3)


def test_the_average_of_the_weights_by_hand(digits: Classifier) -> None:
    with training(digits, ema=0.9) as run:
        expected = weights(run)["conv1.weight"].clone()
        for step in range(3):
            run.advance(examples(), until=step + 1)
            # min(0.9, 1/10, 2/11, 3/12): the first steps count most.
            decay = (1 + step) / (10 + step)
            expected = decay * expected + (1 - decay) * weights(run)["conv1.weight"]
        found = run.result(examples()).module.state_dict()["conv1.weight"]
        assert torch.allclose(found, expected, atol=1e-6)
        assert not torch.equal(found, weights(run)["conv1.weight"])
        assert run.result(examples()).module.bn1.num_batches_tracked == 3
        run.restart()
        assert same(run.result(examples()).module.state_dict(), fresh().module.state_dict())


def test_a_tensor_of_two_names_is_averaged_once() -> None:
    tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2), nn.Linear(2, 2))
    tied.append(tied[1])
    tied[2].weight = tied[0].weight
    average = WeightAverage(tied, 0.9)
    with torch.no_grad():
        before = tied[0].weight.clone()
        tied[0].weight += 1
        tied[1].running_mean += 1  # type: ignore[operator]
    average.move(step=0)  # by the share 1 - 1/10
    module = average.module
    assert torch.allclose(module[2].weight, before + 0.9)  # type: ignore[index]
    assert torch.allclose(module[3].running_mean, torch.tensor(0.9))  # type: ignore[index]
    assert module[2].weight is module[0].weight  # type: ignore[index]


def test_recalibrated_statistics_are_those_of_the_bank(digits: Classifier) -> None:
    with training(digits, bn_recalibration=3) as run:
        run.advance(examples(), until=3)
        before = {name: value.clone() for name, value in weights(run).items()}
        found = run.result(examples()).module
    # The steps after the last, which is the twelfth, would have seen these views.
    views = [view(run.config, examples(), step=12 + k, classes=10, device="cpu") for k in range(3)]
    inputs = (torch.cat([images for images, _ in views]) / 255 - 0.3) / 0.3
    wanted = found.conv1(inputs).mean((0, 2, 3))
    assert torch.allclose(found.bn1.running_mean, wanted, atol=1e-4)
    assert found.bn1.momentum == 0.1
    assert same(before, weights(run)), "the student that goes on training is left alone"


def test_the_teacher_is_put_back(digits: Classifier) -> None:
    before = {name: tensor.clone() for name, tensor in digits.module.state_dict().items()}
    with training(digits) as run:
        run.advance(examples(), until=2)
    assert all(p.requires_grad for p in digits.module.parameters())
    assert same(before, digits.module.state_dict())


def test_a_result_before_the_end_leaves_the_student_learning(digits: Classifier) -> None:
    with training(digits) as run:
        run.advance(examples(), until=2)
        run.result(examples())
        assert run.student.module.training


def test_a_state_that_diverged_is_not_given(digits: Classifier) -> None:
    with training(digits, steps=100) as run:
        run.advance(examples(), until=3)
        with torch.no_grad():
            weights(run)["linear.bias"][0] = torch.inf
        line = "a weight of the student became NaN or infinite at student step 3 of 100; .* lower"
        with pytest.raises(DivergedError, match=line):
            run.state()


def test_divergence_names_the_step(digits: Classifier) -> None:
    with (
        training(digits, lr=1e30, steps=100) as run,
        pytest.raises(DivergedError, match="student step 25 of 100"),
    ):
        run.advance(examples(), until=100)
