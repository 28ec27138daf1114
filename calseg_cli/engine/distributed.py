"""Owns the talk between the processes of one training run: it and `words` alone name torch.distributed.

Every process runs the same loop on its share of each batch. A process that ends early closes its connections, which
ends the wait of all others; the store that torchrun keeps then says who tells of it, and which exit code all have.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from calseg_cli.engine.device import choose_device
from calseg_cli.engine.interrupt import StopRequest
from calseg_cli.engine.launch import launched
from calseg_cli.engine.lifeline import let_go
from calseg_cli.engine.words import PATIENCE, check_environment, hearing, meet, open_store, talking, wait_for_main
from calseg_cli.errors import ConfigError, DeviceError

T = TypeVar("T")

_BUCKET = 2**23  # numbers that travel at once
_STEP = 7  # what a random stream is for
_WORKS = count()  # what the main process did alone, in every process the same number


@dataclass(frozen=True)
class Ranks:
    """Which of `world` processes of one training this is. Alone, everything below leaves every bit as it is.

    All processes must call the same functions in the same order. Raises StoppedError where another one is gone.
    """

    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """This process's own device: of CUDA devices the one that LOCAL_RANK counts to.

        Raises ConfigError for one device or a kind that cannot be shared, DeviceError where there are too few.
        """
        if self.world == 1 or device.type == "cpu":
            return device
        if device.type != "cuda" or device.index is not None:
            raise ConfigError(f"device {device}: {self.world} processes need cuda or cpu", "--device cuda, or cpu")
        local, there = launched().local_rank, torch.cuda.device_count()
        if local >= there:
            raise DeviceError(
                f"process {local} of this machine finds {there} CUDA devices", f"torchrun --nproc-per-node {there}"
            )
        torch.cuda.set_device(local)
        return torch.device("cuda", local)

    def slots(self, batch_size: int, key: str) -> range | None:
        """This process's slots of a batch; None for all. Raises ConfigError, naming `key`, where shares differ."""
        if self.world == 1:
            return None
        share, rest = divmod(batch_size, self.world)
        if rest or not share:
            raise ConfigError(
                f"{key}: {batch_size} images cannot be shared equally by {self.world} processes",
                f"it counts the images of all processes together: a multiple of {self.world}",
            )
        return range(self.rank * share, (self.rank + 1) * share)

    def places(self, count: int) -> range:
        """This process's share of `count` images that are looked at one by one."""
        return range(self.rank, count, self.world)

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, without a gradient: of whole numbers exact, of others the same bits everywhere.

        The tensor itself where there is but one process.
        """
        if self.world == 1:
            return tensor
        summed = tensor.detach().clone(memory_format=torch.contiguous_format)
        with talking():
            dist.all_reduce(summed)
        return summed

    def largest(self, values: Sequence[int]) -> list[int]:
        """The largest of each number among the processes."""
        if self.world == 1 or not values:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.int64)
        with talking():
            dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
        return [int(number) for number in numbers]

    def reduce_gradients(self, parameters: Iterable[nn.Parameter], *, mean: bool = False) -> None:
        """Put the sum (or mean) of all processes' gradients in place of each gradient, many of them at once.

        A gradient that is missing counts as 0, unless it is missing in every process: then it stays so.
        """
        if self.world == 1:
            return
        members = [parameter for parameter in parameters if parameter.requires_grad]
        anywhere = self.largest([int(parameter.grad is not None) for parameter in members])
        gradients = [_gradient(parameter) for parameter, there in zip(members, anywhere, strict=True) if there]
        for bucket in _buckets(gradients):
            summed = self.total(torch.cat([gradient.reshape(-1) for gradient in bucket]))
            parts = torch.split(summed / self.world if mean else summed, [gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view(gradient.shape))

    def whole(self, tensor: Tensor) -> Tensor:
        """All processes' tensors (B,...) of one shape, by rank one after another, without a gradient; the same bits.

        The tensor itself where there is but one process.
        """
        if self.world == 1:
            return tensor
        # gloo knows no truth values
        sent = (tensor.byte() if tensor.dtype == torch.bool else tensor).detach().contiguous()
        found = [torch.empty_like(sent) for _ in range(self.world)]
        with talking():
            dist.all_gather(found, sent)
        return torch.cat(found).to(tensor.dtype)

    def first(self, count: int) -> int:
        """The place of this process's first image in a batch of which each has `count`."""
        return self.rank * count

    def own(self, whole: Tensor) -> Tensor:
        """This process's share (B,...) of what `whole` gives."""
        return whole if self.world == 1 else whole.chunk(self.world)[self.rank]

    def main_does(self, work: Callable[[], T], stop: StopRequest | None = None) -> T | None:
        """What `work` gives in the main process, None in the others, which wait for it however long it takes.

        One that is asked to `stop` while it waits has the main process asked too, and goes on waiting. Raises
        StoppedError where the main process ended in it, however it did.
        """
        if self.world == 1:
            return work()
        done = f"done/{next(_WORKS)}"
        if not self.is_main:
            wait_for_main(done, stop)
            return None
        with hearing(stop):
            found = work()
        with talking():
            open_store().set(done, "1")
        return found

    def main_answers(self, question: Callable[[], T]) -> T:
        """What `question` gives in the main process, in all of them; the others do not ask it.

        For what is read off the disk and decides what is done next: file systems may show it to machines unlike.
        """
        return cast(T, self.share(question() if self.is_main else None))

    def share(self, value: T) -> T:
        """What the main process holds, in all of them; what the others give is not looked at."""
        if self.world == 1:
            return value
        held = [value]
        with talking():
            dist.broadcast_object_list(held, src=0, device=torch.device("cpu"))
        return held[0]

    def gather(self, value: T) -> list[T]:
        """What each process holds, by rank, in all of them."""
        if self.world == 1:
            return [value]
        found: list[T] = [value] * self.world
        with talking():
            dist.all_gather_object(found, value)
        return found

    def equalise(self, tensors: Iterable[Tensor]) -> None:
        """Make tensors those of the main process."""
        if self.world == 1:
            return
        for tensor in tensors:
            sent = tensor.detach().clone(memory_format=torch.contiguous_format)
            with talking():
                dist.broadcast(sent, src=0)
            tensor.detach().copy_(sent)

    def barrier(self) -> None:
        """Wait until all are here."""
        self.largest([0])

    def seed_step(self, seed: int, step: int) -> None:
        """Let what the network draws, as dropout does, follow from (seed, step, rank): no two shares draw the same.

        Alone the generator simply goes on.
        """
        if self.world > 1:
            words = np.random.SeedSequence((seed, _STEP, step, self.rank)).generate_state(1, np.uint64)
            torch.manual_seed(int(words[0]))


ALONE = Ranks()


@contextmanager
def process_group(device: str) -> Iterator[Ranks]:
    """The processes that torchrun started, connected; `ALONE` where it did not, with nothing done.

    Talk about tensors of the CPU goes by gloo, about those of CUDA by NCCL. Raises ConfigError without torchrun's
    environment, DeviceError where they cannot reach each other, StoppedError where one is gone before it begins.
    """
    found = launched()
    if found.world == 1:
        yield ALONE
        return
    ranks = Ranks(found.rank, found.world)
    kind = ranks.device(choose_device(device)).type
    check_environment()
    try:
        meet(found)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo",
            store=open_store("group/"),
            rank=found.rank,
            world_size=found.world,
            timeout=PATIENCE,
        )
    except RuntimeError as error:
        raise DeviceError(
            f"the processes cannot reach each other ({str(error).splitlines()[0]})",
            "GLOO_SOCKET_IFNAME (and NCCL_SOCKET_IFNAME) name the network to use, on one machine lo",
        ) from error
    yield ranks
    # After an error it stays open: that its connections close at this process's end is what tells the others.
    dist.destroy_process_group()
    let_go()


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type together, in their order, up to about `_BUCKET` numbers."""
    for kind in sorted({(tensor.dtype, tensor.device) for tensor in tensors}, key=str):
        bucket: list[Tensor] = []
        for tensor in tensors:
            if (tensor.dtype, tensor.device) == kind:
                bucket.append(tensor)
            if sum(one.numel() for one in bucket) >= _BUCKET:
                yield bucket
                bucket = []
        if bucket:
            yield bucket
