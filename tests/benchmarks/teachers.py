"""Train the teachers that are bundled with dreamkd, and those measured, from real data.

    python -m tests.benchmarks.teachers digits
    python -m tests.benchmarks.teachers cifar10 --train 'CIFAR/train-*.tar' --test CIFAR/test.tar
    python -m tests.benchmarks.teachers wrn16_2 --train ... --test ... --out runs/teachers

Plain supervised training: SGD with Nesterov momentum, random crops (and flips where the class
allows one), a one-cycle schedule that ends at zero; the last epoch is the result and the test set
is read once, after it. Writes `dreamkd/models/bundled/NAME.safetensors` and prints a row for
docs/benchmarks.md. A killed run continues at its last finished epoch.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dreamkd import data
from dreamkd.augment import draw_roll, random_crop
from dreamkd.config import RuntimeConfig
from dreamkd.engine.runtime import Runtime
from dreamkd.models import cifar

BUNDLED = Path(cifar.__file__).parent / "bundled"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained on what, and how."""

    name: str
    arch: str
    train: str
    test: str
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    epochs: int
    padding: int
    flip: bool
    licence: str
    batch_size: int = 128
    peak_lr: float = 0.2
    weight_decay: float = 5e-4
    warmup: float = 0.1  # share of all steps in which the rate rises
    seed: int = 0


RECIPES = {
    "digits": Recipe(
        name="digits_resnet14",
        arch="cifar_resnet14",
        train="sklearn:digits:train",
        test="sklearn:digits:test",
        input_size=(1, 16, 16),
        mean=(0.305,),
        std=(0.352,),
        epochs=60,
        padding=1,
        flip=False,
        licence="Apache-2.0; trained on UCI optical digits (CC BY 4.0)",
    ),
    "cifar10": Recipe(
        name="cifar10_resnet20",
        arch="cifar_resnet20",
        train="train-*.tar",
        test="test.tar",
        input_size=(3, 32, 32),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        epochs=80,
        padding=4,
        flip=True,
        licence="Apache-2.0; trained on CIFAR-10 (Krizhevsky 2009)",
    ),
}
# Not bundled: other architectures on which automatic settings are measured.
RECIPES |= {
    arch: replace(RECIPES["cifar10"], name=f"cifar10_{arch}", arch=f"cifar_{arch}", epochs=epochs)
    for arch, epochs in (("wrn16_2", 5), ("vgg11_bn", 2))
}
# The teachers of the literature's tables: minutes on a GPU, days without one.
RECIPES |= {
    f"{arch}_200": replace(
        RECIPES["cifar10"], name=f"cifar10_{arch}_200", arch=f"cifar_{arch}", epochs=200
    )
    for arch in ("resnet34", "vgg11_bn")
}

RUNTIME = Runtime.settle(RuntimeConfig())
DEVICE = RUNTIME.device


def train(recipe: Recipe, images: Tensor, labels: Tensor, *, resume: Path) -> nn.Module:
    """Train on uint8 `images` (N, C, H, W) and `labels` (N,); state is kept in `resume`."""
    torch.manual_seed(recipe.seed)
    channels = recipe.input_size[0]
    model: nn.Module = cifar.NETWORKS[recipe.arch](in_chans=channels)
    model.to(DEVICE, memory_format=torch.channels_last)
    images, labels = images.to(DEVICE), labels.to(DEVICE)
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": plain}],
        lr=recipe.peak_lr,
        momentum=0.9,
        nesterov=True,
    )
    steps = len(images) // recipe.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=recipe.peak_lr,
        total_steps=steps * recipe.epochs + 1,
        pct_start=recipe.warmup,
        cycle_momentum=False,
        final_div_factor=1e6,
    )
    mean, std = units(recipe)
    forward = torch.compile(model)
    start = 0
    if resume.exists():
        state = torch.load(resume, weights_only=True, map_location=DEVICE)
        start = state["epoch"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
    for epoch in range(start, recipe.epochs):
        began = time.perf_counter()
        generator = torch.Generator().manual_seed(1000 * recipe.seed + epoch)
        order = torch.randperm(len(images), generator=generator)
        order = order.to(DEVICE)
        total = torch.zeros((), device=DEVICE)
        for step in range(steps):
            index = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            offsets = draw_roll(
                len(index), shift=recipe.padding, flip=recipe.flip, generator=generator
            )
            crops = random_crop(images[index], offsets)
            inputs = ((crops - mean) / std).contiguous(memory_format=torch.channels_last)
            with RUNTIME.autocast():
                logits = forward(inputs)
            loss = nn.functional.cross_entropy(logits.float(), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        mean_loss = float(total) / steps  # host sync
        seconds = time.perf_counter() - began
        print(f"epoch {epoch + 1} loss {mean_loss:.4f} {seconds:.1f} s", flush=True)
        state = {"epoch": epoch + 1, "model": model.state_dict()}
        state |= {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
        torch.save(state, resume.with_suffix(".part"))
        resume.with_suffix(".part").replace(resume)
    return model.eval()


def units(recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of pixels in 0..255."""
    mean, std = (
        255 * torch.tensor(values, device=DEVICE).view(1, -1, 1, 1)
        for values in (recipe.mean, recipe.std)
    )
    return mean, std


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe) -> float:
    """Top-1 in percent, float32."""
    mean, std = units(recipe)
    right = 0
    for chunk, truth in zip(images.split(500), labels.split(500), strict=True):
        logits = model((chunk.to(DEVICE) - mean) / std)
        right += int((logits.argmax(1).cpu() == truth).sum())
    return 100 * right / len(labels)


def main() -> None:
    """Train one bundled teacher and write it with its metadata."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher", choices=sorted(RECIPES))
    parser.add_argument("--train", help="data specification of the training images")
    parser.add_argument("--test", help="data specification of the test images")
    parser.add_argument("--out", type=Path, default=BUNDLED, help="folder of the result")
    parser.add_argument(
        "--state", type=Path, default=Path("runs/teachers"), help="folder to resume from"
    )
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.teacher]
    how = data.Preprocessing(input_size=recipe.input_size)
    train_set = data.open_images(arguments.train or recipe.train, preprocessing=how)
    images, labels = data.stack(train_set)
    print(f"{recipe.name}: {len(labels)} images, {recipe.epochs} epochs", flush=True)
    arguments.state.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    model = train(recipe, images, labels, resume=arguments.state / f"{recipe.name}.pt")
    minutes = (time.perf_counter() - began) / 60
    test_set = data.open_images(arguments.test or recipe.test, preprocessing=how)
    top1 = accuracy(model, *data.stack(test_set), recipe)
    metadata = {
        "format": "pt",
        "architecture": recipe.arch,
        "num_classes": "10",
        "class_names": json.dumps(train_set.class_names),
        "input_size": json.dumps(recipe.input_size),
        "mean": json.dumps(recipe.mean),
        "std": json.dumps(recipe.std),
        "interpolation": how.interpolation,
        "crop_pct": str(how.crop_pct),
        "licence": recipe.licence,
        "trained": f"python -m tests.benchmarks.teachers {arguments.teacher}; "
        f"{recipe.epochs} epochs, SGD, seed {recipe.seed}; top-1 {top1:.2f} % on its test set",
    }
    weights = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    weights = {k: v.cpu().contiguous() for k, v in weights.items()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    save_file(weights, arguments.out / f"{recipe.name}.safetensors", metadata)
    print(f"| {recipe.name} | {top1:.2f} % | {minutes:.1f} min | torch {torch.__version__} |")


if __name__ == "__main__":
    main()
