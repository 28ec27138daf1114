"""Owns what methods that train on the target share: their plan, their batches, and statistics measured at the end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from calseg_cli.config import Resolved
from calseg_cli.config.methods import Rounds, Tent
from calseg_cli.config.self_training import SelfTraining, sections_of
from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.data.loader import TrainStream
from calseg_cli.data.loader import sweep as sweep_images
from calseg_cli.engine.batch_statistics import batch_norms
from calseg_cli.engine.distributed import ALONE, Ranks
from calseg_cli.engine.interrupt import StopRequest
from calseg_cli.engine.method import Method
from calseg_cli.engine.progress import Progress
from calseg_cli.engine.shared_batch_norm import apart
from calseg_cli.engine.train import Plan, asked_to_stop, sweep
from calseg_cli.methods.adabn import AdaBN
from calseg_cli.stages.networks import LoadedNetwork
from calseg_cli.stages.training import StageFolder, augmentation, run_loop


@dataclass(frozen=True)
class Setting:
    """Where an adaptation works: the network that it changes in place, unlabelled images, and who listens.

    Of several `ranks` each has all this; the main one's progress is heard alone.
    """

    resolved: Resolved
    loaded: LoadedNetwork
    images: SegmentationDataset
    device: torch.device
    progress: Progress
    stop: StopRequest
    ranks: Ranks = ALONE

    @property
    def options(self) -> Any:
        """The section that says how the method is run: its own, or that of self-training, which it builds on."""
        adapt = self.resolved.config.adapt
        return getattr(adapt, sections_of(adapt.method)[-1])


def remeasure(setting: Setting, title: str, network: nn.Module | None = None) -> None:
    """Put the statistics of all target images into the network's batch norm, as AdaBN does; none there: nothing.

    The setting's network unless another is named. Raises StoppedError when asked to stop; the network is then as it
    was.
    """
    network = setting.loaded.network if network is None else network
    if not batch_norms(network):
        return
    method = AdaBN(network)
    method.work_with(setting.ranks)
    show_all(setting, method, title, [setting.resolved.config.seed])
    if setting.stop:
        raise setting.stop.error(f"stopped while {title}", "the same command with --resume goes on from there")
    method.deployed().eval()


def show_all(setting: Setting, method: Method, title: str, shuffle_seeds: Sequence[int | None]) -> None:
    """Show the method every target image, once in the order of each seed.

    Of several processes each shows some of the batches, and what they counted adds up. Where one is asked to stop all
    know it in the end.
    """
    ranks, images = setting.ranks, setting.images
    setting.progress.start(title, -(-len(images) // ranks.world) * len(shuffle_seeds))
    for seed in shuffle_seeds:
        batches = sweep_images(
            images,
            setting.options.batch_size,
            workers=setting.resolved.config.workers,
            shuffle_seed=seed,
            share=(ranks.rank, ranks.world),
        )
        with apart(method):
            sweep(method, batches, device=setting.device, progress=setting.progress, stop=setting.stop)
        if asked_to_stop(setting.stop, ranks):
            return
    setting.progress.finish()
    method.end_of_sweep()


def train_on_target(
    setting: Setting,
    folder: StageFolder,
    method: Method,
    images: SegmentationDataset,
    *,
    seed: int,
    resume: bool,
    conclude: Callable[[], None],
) -> None:
    """The method's steps on batches of `images`, to a whole network in `folder` or to a resumable state."""
    config, options = setting.resolved.config, setting.options
    stream = TrainStream(
        None,
        images,
        batch_size=options.batch_size,
        augmentation=augmentation(options.augment),
        seed=seed,
        workers=config.workers,
        slots=batch_slots(setting),
    )
    method.work_with(setting.ranks)
    run_loop(
        folder,
        method,
        stream,
        target_plan(options, channels_last=config.pretrain.channels_last),
        resume=resume,
        device=setting.device,
        validate=None,
        keep_all=False,
        progress=setting.progress,
        stop=setting.stop,
        conclude=conclude,
        ranks=setting.ranks,
    )


def batch_slots(setting: Setting) -> range | None:
    """This process's slots of every batch; None for all. Raises ConfigError where it cannot be shared equally."""
    section = sections_of(setting.resolved.config.adapt.method)[-1]
    return setting.ranks.slots(setting.options.batch_size, f"adapt.{section}.batch_size")


def target_plan(options: Rounds | Tent | SelfTraining, *, channels_last: bool) -> Plan:
    """The loop's plan from a method's section; `channels_last` is what holds where the section leaves it open."""
    return Plan(
        steps=options.steps,
        optimizer=options.optimizer,
        lr=options.lr,
        head_lr=options.lr if isinstance(options, Tent) else options.head_lr,
        weight_decay=options.weight_decay,
        momentum=options.momentum,
        schedule=options.schedule,
        clip_norm=options.clip_norm,
        amp=options.amp,
        channels_last=channels_last if options.channels_last is None else options.channels_last,
        grad_checkpoint=options.grad_checkpoint,
        log_every=options.log_every,
        checkpoint_every=options.checkpoint_every,
    )
