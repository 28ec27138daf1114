"""Batches of two domains, a step as the loop does it, and a plugin that watches."""

import torch

from calseg_cli.data.loader import Batch
from calseg_cli.data.strong_augmentation import StrongAugmentation
from calseg_cli.methods.self_training import SelfTraining
from calseg_cli.methods.self_training_view import Plugin

CLASSES, SIZE = 4, (24, 32)
PLAIN = StrongAugmentation(color=0.0, blur=0.0)


def batch_of(step: int, size: tuple[int, int] = SIZE, *, ignore: float = 0.2) -> Batch:
    """Labels of large patches, some of them unknown, and images that show them."""
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(0, CLASSES, (3, size[0] // 4, size[1] // 4), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignore] = 255
    labels = labels.repeat_interleave(4, 1).repeat_interleave(4, 2)
    images = torch.rand(2, 3, 3, *size, generator=generator)
    ids = ("a", "b", "c")
    return Batch(step, images[0], labels, images[1], ids, ids)


def step_of(method: SelfTraining, step: int, lr: float = 0.1) -> dict[str, torch.Tensor]:
    """One step as the loop does it."""
    method.train()
    batch = batch_of(step)
    method.before_step(batch, step)
    terms = method(batch)
    method.zero_grad()
    torch.stack(list(terms.values())).sum().backward()
    with torch.no_grad():
        for parameter in method.network.parameters():
            if parameter.grad is not None:
                parameter -= lr * parameter.grad
    method.after_step(step)
    return {name: term.detach() for name, term in terms.items()}


def trained(method: SelfTraining, make_batch, steps) -> dict[str, torch.Tensor]:
    """Steps with an optimiser over all that the method gives it; the last one's terms."""
    optimizer = torch.optim.SGD([p for group in method.parameter_groups() for p in group.parameters], lr=0.1)
    terms = {}
    for step in steps:
        batch = make_batch(step)
        method.before_step(batch, step)
        terms = method(batch)
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        method.after_step(step)
    return {name: term.detach() for name, term in terms.items()}


class Spy(Plugin):
    """Notes every call and what it saw; changes what it is told to."""

    def __init__(self, name="spy", *, soft=None, shift=0.0, warm_up=0):
        super().__init__()
        self.name, self.soft, self.shift, self.warm_up_steps = name, soft, shift, warm_up
        self.calls, self.view, self.logits = [], None, None
        self.corrected = []

    def targets(self, view, logits):
        self.calls.append("targets")
        self.view, self.logits = view, logits
        return None if self.soft is None else self.soft(view, logits)

    def correct(self, logits, labels, domain, term):
        self.calls.append(f"correct {term}")
        self.corrected.append((logits, labels, domain))
        return logits + self.shift

    def terms(self, view):
        self.calls.append("terms")
        self.view = view
        return {self.name: 0.25 * view.weights.mean()}

    def after_step(self, step):
        self.calls.append(f"after {step}")

    def report(self):
        return {f"{self.name} said": 1.5}
