"""Owns how self-training on mixed images is fed: source images beside the target's, and what the method is built of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from calseg_cli.artifacts.digests import list_digest
from calseg_cli.config import Resolved
from calseg_cli.config.self_training import SelfTraining as Options
from calseg_cli.config.self_training import sections_of
from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.data.loader import TrainStream
from calseg_cli.data.rare_classes import RareClassSampler
from calseg_cli.data.strong_augmentation import StrongAugmentation
from calseg_cli.engine.progress import Progress
from calseg_cli.engine.shared_batch_norm import apart
from calseg_cli.errors import ConfigError, DataError
from calseg_cli.methods import ADAPTATIONS, PLUGINS, build_adaptation
from calseg_cli.methods.prototype_labels import PrototypeLabels
from calseg_cli.methods.self_training import SelfTraining
from calseg_cli.methods.self_training_domains import check_sizes
from calseg_cli.methods.self_training_frame import Frame, Masking
from calseg_cli.methods.self_training_labels import Trust
from calseg_cli.methods.self_training_view import Plugin
from calseg_cli.networks.build import NETWORKS, build_network
from calseg_cli.stages.calibrate_prototypes import check_section, options_of
from calseg_cli.stages.class_weights import class_weights
from calseg_cli.stages.corrections import Loaded, correct
from calseg_cli.stages.domains import DomainData, open_domain
from calseg_cli.stages.logit_anchors import Anchors
from calseg_cli.stages.networks import LoadedNetwork
from calseg_cli.stages.run_folder import LOG, RESUME
from calseg_cli.stages.settling import Settling
from calseg_cli.stages.target_training import Setting, batch_slots, remeasure, target_plan
from calseg_cli.stages.training import StageFolder, augmentation, read_log, run_loop
from calseg_cli.stages.training_oracle import Labelled
from calseg_cli.stages.watching import watch

_EVERY = 8
"""One source image in so many is held out of training where the source's val split is not to be used."""
_DAFORMER_PIXELS, _DAFORMER_AREA = 3000, 512 * 512
_UNTAUGHT = 0.01
_PRIOR, _KEPT = 1000.0, 0.99
"""Of prototypes counted in training: the first batch has none yet, and the teacher of long ago is another one."""


@dataclass(frozen=True)
class SourceImages:
    """Labelled source images: those that the student trains on, and those that it never sees."""

    training: SegmentationDataset
    held_out: SegmentationDataset | None

    @property
    def digest(self) -> str:
        """Of both lists of ids."""
        parts = [("training", self.training), ("held out", self.held_out)]
        return list_digest([f"{name}: {item.id}" for name, part in parts if part is not None for item in part.items])


def open_source(
    resolved: Resolved, class_names: Sequence[str], target: SegmentationDataset, *, needs_held_out: bool
) -> SourceImages:
    """The source's labelled images.

    Raises DataError where there is no source, where its images cannot be mixed with the target's because they differ in
    size, or where there is nothing to hold out.
    """
    method = resolved.config.adapt.method
    root = None if resolved.config.source is None else resolved.config.source.root
    if root is None or not root.is_dir():
        free = [name for name, kind in ADAPTATIONS.items() if "source" not in kind.requires]
        raise DataError(
            f"{method} trains on the source's labelled images too, and there is no "
            + ("source in the configuration" if root is None else f"folder {root}"),
            f"methods that need no source: {', '.join(free)}; self-training and blda with --source-free",
        )
    domain = open_domain(resolved, "source", class_names)
    training = domain.dataset("train", with_labels=True)
    if resolved.config.adapt.self_training.augment.crop is None:
        check_sizes(_input_size(training), _input_size(target))
    if not needs_held_out:
        return SourceImages(training, None)
    if resolved.config.adapt.self_training.held_out == "val":
        return SourceImages(training, _validation(domain, method))
    places = range(len(training))
    if len(training) < _EVERY:
        raise DataError(f"{len(training)} source images are too few to hold out one in {_EVERY}", "use held_out: val")
    return SourceImages(
        training.subset([place for place in places if place % _EVERY != _EVERY - 1]),
        training.subset([place for place in places if place % _EVERY == _EVERY - 1]),
    )


def _validation(domain: DomainData, method: str) -> SegmentationDataset:
    try:
        return domain.dataset("val", with_labels=True)
    except DataError as error:
        raise DataError(
            f"{method} looks at labelled source images that it is not trained on: {error.message}",
            "adapt.self_training.held_out: fold keeps one in 8 training images apart in its place",
        ) from error


def build_method(
    resolved: Resolved,
    loaded: LoadedNetwork,
    corrections: Sequence[Loaded],
    anchors: Anchors | None,
    progress: Progress,
) -> SelfTraining:
    """The configured method around the loaded network.

    Raises ConfigError for classes it does not know, and for what cannot be had without the source.
    """
    config = resolved.config
    options = config.adapt.self_training
    _check_source_free(options)
    method = build_adaptation(
        config.adapt.method,
        loaded.network,
        frame=frame_of(options, loaded.class_names),
        seed=config.seed,
        plugins=_plugins(resolved, loaded.network, anchors),
        reference=_reference(options, loaded, progress),
        label_correction=_label_correction(corrections),
        prototypes=_prototypes(resolved, len(loaded.class_names)),
    )
    assert isinstance(method, SelfTraining)
    return method


def _check_source_free(options: Options) -> None:
    """Of what the method itself does not see."""
    if options.source_free and options.batch_size < 2:
        raise ConfigError(
            "source_free mixes each target image with another one of its batch, and a batch has one image",
            "--batch-size 2, or more",
        )
    if options.source_free and options.settle:
        raise ConfigError("settle judges by labelled source images, and source_free has none", "leave one of them out")
    if options.source_free and options.class_weights not in (None, "none"):
        raise ConfigError(
            "adapt.self_training.class_weights weigh source pixels, and source_free has none", "leave one of them out"
        )


def _prototypes(resolved: Resolved, classes: int) -> PrototypeLabels | None:
    """Counted as it trains, where asked for. Raises ConfigError for options that need all images at once."""
    section = resolved.config.prototypes
    if resolved.config.adapt.self_training.prototypes == "off":
        return None
    check_section(section, resolved, None)
    options = replace(options_of(section), prior=section.prior or _PRIOR)
    return PrototypeLabels(classes, options, _KEPT if section.forget is None else section.forget)


def frame_of(options: Options, class_names: Sequence[str]) -> Frame:
    """The method's options from the configuration's section."""
    return Frame(
        base=options.base,
        labels=options.labels,
        ema=options.ema,
        trust=Trust(
            options.quality,
            options.threshold,
            options.threshold_labels,
            options.ignore_top,
            options.ignore_bottom,
        ),
        statistics=options.statistics,
        keep=options.keep,
        source_weight=options.source_weight,
        mix_weight=options.mix_weight,
        hard_steps=options.hard_steps,
        strong=StrongAugmentation(**options.strong.model_dump()),
        feature_weight=options.feature_weight,
        feature_ratio=options.feature_ratio,
        feature_classes=_places(options.feature_classes, class_names),
        masking=Masking(options.mask_block, options.mask_ratio, options.mask_weight, options.masked_labels),
        source_free=options.source_free,
    )


def _places(names: Sequence[str] | None, class_names: Sequence[str]) -> tuple[int, ...] | None:
    if names is None:
        return None
    for name in names:
        if name not in class_names:
            raise ConfigError(
                f"adapt.self_training.feature_classes: the network knows no class {name!r}",
                f"it knows {', '.join(class_names)}",
            )
    return tuple(list(class_names).index(name) for name in names)


def _plugins(resolved: Resolved, network: nn.Module, anchors: Anchors | None) -> list[Plugin]:
    """What builds on self-training here, each with the options of its section that it takes."""
    adapt, found = resolved.config.adapt, []
    for name in adapt.method.split("+"):
        if name in PLUGINS:
            options = getattr(adapt, sections_of(name)[0]).model_dump()
            if "anchors" in options:  # the configuration has a file in their place
                options["anchors"] = None if anchors is None else anchors.mixtures
            found.append(PLUGINS[name](network, seed=resolved.config.seed, **options))
    return found


def _reference(options: Options, loaded: LoadedNetwork, progress: Progress) -> nn.Module | None:
    """The encoder as ImageNet left it, where the network's family brings it; else None, which is said."""
    if options.base == "dacs" or options.source_free or not options.feature_weight:
        return None
    described: dict[str, Any] = loaded.checkpoint.facts["network"]
    family = NETWORKS.get(described["name"])
    if family is not None and family.imagenet is not None and family.load("has_imagenet_weights")():
        network = build_network(
            described["name"], int(described["num_classes"]), init="imagenet", options=described["options"]
        )
        return network.encoder
    progress.note(
        f"feature distance: no ImageNet weights of {described['name']} are at hand; the network adapted from takes "
        "their place"
    )
    return None


def _label_correction(corrections: Sequence[Loaded]) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Corrections work on the CPU, image by image, as they do everywhere else."""
    if not corrections:
        return None

    def corrected(logits: Tensor, image: Tensor) -> Tensor:
        return correct(logits.cpu(), corrections, "a target image", image.cpu()).to(logits.device)

    return corrected


def train_on_both(
    setting: Setting,
    stage: StageFolder,
    method: SelfTraining,
    source: SourceImages | None,
    labelled: Labelled | None = None,
    *,
    resume: bool,
) -> None:
    """The method's steps on batches of both domains, to a whole network in the stage's folder or a resumable state.

    Without `source` on batches of the target alone. `labelled` target images are for an oracle's curves alone.
    """
    config, options = setting.resolved.config, setting.options
    settling = Settling(setting) if options.settle else None
    weights = None if source is None else _class_weights(setting.resolved, source.training)
    method.class_weights = None if weights is None else weights.to(setting.device)
    if options.warm_up:
        _warm_up(setting, stage, method, resume=resume)

    def settle(settling: Settling, network: nn.Module) -> None:
        """One process finds the temperature, the others wait."""
        with apart(network):
            setting.ranks.main_does(lambda: settling(network, stage), setting.stop)
        setting.ranks.equalise(network.parameters())

    def conclude() -> None:
        _note_untaught(stage, setting.progress)
        if method.measures_again:
            remeasure(setting, "measuring the statistics again", method.deployed())
        if settling is not None:
            settle(settling, method.deployed())

    stream = TrainStream(
        None if source is None else source.training,
        setting.images,
        batch_size=options.batch_size,
        augmentation=augmentation(options.augment),
        seed=config.seed,
        workers=config.workers,
        sampler=None if source is None else _sampler(options, source.training, config.workers),
        held_out=None if source is None else source.held_out,
        slots=batch_slots(setting),
    )
    method.work_with(setting.ranks)
    _note_unused(method, options, setting.progress)
    watch(setting, stage, method, stream, labelled, resume=resume)
    run_loop(
        stage,
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


def _warm_up(setting: Setting, stage: StageFolder, method: SelfTraining, *, resume: bool) -> None:
    """Begin with the target's statistics; where it goes on from a state, that brings them."""
    if setting.ranks.main_answers(lambda: resume and (stage.path / RESUME).exists()):
        return
    remeasure(setting, "measuring the target's statistics")
    method.restart_teacher()


def _class_weights(resolved: Resolved, training: SegmentationDataset) -> Tensor | None:
    """As the source network was trained, unless asked otherwise: else the mix teaches other class frequencies anew."""
    own, pretrain = resolved.config.adapt.self_training.class_weights, resolved.config.pretrain.class_weights
    if own is None:
        return class_weights(pretrain, training, "pretrain.class_weights")
    return class_weights(own, training, "adapt.self_training.class_weights")


def _note_unused(method: SelfTraining, options: Options, progress: Progress) -> None:
    """Say where a run is too short for what it is called after ever to begin."""
    late = max([options.hard_steps, *[plugin.warm_up_steps for plugin in method.openings]])
    if late >= options.steps:
        progress.note(f"{options.steps} steps are over before the warm-up of {late} is; all labels will be the frame's")


def _note_untaught(stage: StageFolder, progress: Progress) -> None:
    """Say where the target taught next to nothing, which the result does not show."""
    weights = [
        record["watch"]["quality"] for record in read_log(stage.path / LOG) if "quality" in record.get("watch", {})
    ]
    if weights and max(weights) < _UNTAUGHT:
        progress.note(
            "target pixels had next to no weight: hardly any was as sure as adapt.self_training.threshold; "
            "--quality one counts them all"
        )


def _sampler(options: Options, training: SegmentationDataset, workers: int) -> RareClassSampler | None:
    if options.base == "dacs":
        return None
    least = options.rare_min_pixels or rare_pixels(training)
    return RareClassSampler(training, options.rare_temperature, least, workers)


def rare_pixels(dataset: SegmentationDataset) -> int:
    """As large a share of the network's input as DAFormer's 3000 pixels are of 512x512; at least 1."""
    height, width = _input_size(dataset)
    return max(1, round(_DAFORMER_PIXELS * height * width / _DAFORMER_AREA))


def _input_size(dataset: SegmentationDataset) -> tuple[int, int]:
    size = dataset.size or dataset.read(0).image.shape[:2]
    return int(size[0]), int(size[1])
