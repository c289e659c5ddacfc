"""A training loop as the published CIFAR distillation scripts have it: one picture at a time, and every meter read every step.

The set is an array in memory, augmented by torchvision's transforms on Pillow images in the workers of a DataLoader; the
teacher runs without gradient and hands over its features, which KD does not use; losses and accuracies go through
``.item()`` in each step. No compilation, no other memory layout, no fused optimizer. Written here, in that style.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from kdscale.networks.cifar import CifarNetwork

FEATURES = ("stem", "stage1", "stage2", "stage3", "pooled")
TEMPERATURE, LABELS, TEACHER = 4.0, 0.1, 0.9
LEARNING_RATE, MOMENTUM, DECAY = 0.05, 0.9, 5e-4


class Pictures(Dataset[tuple[Tensor, int]]):
    """uint8 [N, H, W, 3] and labels [N], a picture a call."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[Any], mean: Any, std: Any) -> None:
        self.images, self.labels = images, labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(images.shape[1], padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[number])), self.labels[number]


class Average:
    """A running mean, as the scripts' meters keep it."""

    def __init__(self) -> None:
        self.sum, self.count = 0.0, 0

    def update(self, value: float, count: int) -> None:
        self.sum, self.count = self.sum + value * count, self.count + count

    @property
    def mean(self) -> float:
        return self.sum / max(1, self.count)


class PublishedLoop:
    """KD of a frozen ``teacher`` to a ``student``, a batch a :meth:`step`; an epoch follows the other."""

    def __init__(
        self, student: CifarNetwork, teacher: CifarNetwork, pictures: Pictures, batch: int, workers: int, device: torch.device
    ) -> None:
        self.student, self.teacher, self.device = student.to(device), teacher.to(device), device
        self.loader = DataLoader(
            pictures, batch, shuffle=True, num_workers=workers, pin_memory=device.type == "cuda", persistent_workers=workers > 0
        )
        self.optimizer = torch.optim.SGD(student.parameters(), LEARNING_RATE, momentum=MOMENTUM, weight_decay=DECAY)
        self.cross_entropy = nn.CrossEntropyLoss()
        self.losses, self.top1, self.top5 = Average(), Average(), Average()
        self.batches = self.endless()

    def endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from self.loader

    def step(self) -> None:
        images, labels = next(self.batches)
        images, labels = images.float().to(self.device), labels.to(self.device)
        self.student.train()
        self.teacher.eval()
        logits, _ = self.student.walk(images, FEATURES)
        with torch.no_grad():
            said, features = self.teacher.walk(images, FEATURES)
            _ = [feature.detach() for feature in features.values()]
        loss = LABELS * self.cross_entropy(logits, labels) + TEACHER * distance(logits, said)
        top1, top5 = accuracy(logits, labels)
        self.losses.update(loss.item(), len(images))
        self.top1.update(top1.item(), len(images))
        self.top5.update(top5.item(), len(images))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def distance(logits: Tensor, said: Tensor) -> Tensor:
    """T^2 KL(teacher || student), a mean over the batch."""
    ours = functional.log_softmax(logits / TEMPERATURE, dim=1)
    theirs = functional.softmax(said / TEMPERATURE, dim=1)
    return functional.kl_div(ours, theirs, reduction="sum") * TEMPERATURE**2 / len(logits)


@torch.no_grad()
def accuracy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Per cent right at the first and among the first five answers."""
    _, found = logits.topk(min(5, logits.shape[1]), 1)
    right = found.eq(labels[:, None])
    return right[:, 0].float().mean() * 100, right.any(1).float().mean() * 100
