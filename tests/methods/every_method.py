"""Every method and combination that can be trained, with options under which all of it acts from the second step on."""

from dataclasses import replace

import torch

from calseg_cli.methods import ADAPTATIONS, PLUGINS, adaptation_kind, build_adaptation
from calseg_cli.methods.blda import build_blda
from calseg_cli.methods.dacal import build_dacal
from calseg_cli.methods.logit_mixtures import fit_mixtures
from calseg_cli.methods.prototype_labels import PrototypeLabels
from calseg_cli.methods.prototypes import PrototypeOptions
from calseg_cli.methods.round_self_training import Beliefs
from calseg_cli.methods.self_training_frame import Frame, Masking
from calseg_cli.methods.self_training_labels import Trust
from calseg_cli.methods.source import CalibrationTerm, Source

FREE = Frame(source_free=True, trust=Trust("one"))
KINDS = {"source": Source, **ADAPTATIONS, **{name: adaptation_kind(name) for name in PLUGINS}}
IDS = [f"{step}-{place}" for step in range(40) for place in range(4)]  # as `make_batch` names images


def _source(network):
    return Source(network, class_weights=torch.tensor([0.5, 1, 2]), label_smoothing=0.1, ece=CalibrationTerm(0.5))


def _calsfda(network):
    method = build_adaptation("calsfda", network, anchor=2.0, softness="smoothing")
    error = {name: 0.1 + 0.001 * place for place, name in enumerate(IDS)}
    method.believe(Beliefs(torch.tensor([0.2, 0.5, 0.9]).double().numpy(), error, dict.fromkeys(IDS, 0.7)))
    return method


def _frame(frame=None, plugins=(), prototypes=False, weights=False):
    def build(network):
        method = build_adaptation(
            "self-training",
            network,
            frame=frame or Frame(trust=Trust(threshold=0.4)),
            plugins=[make(network) for make in plugins],
            prototypes=PrototypeLabels(3, PrototypeOptions(prior=20.0), keep=0.9) if prototypes else None,
        )
        method.class_weights = torch.tensor([0.5, 1.0, 2.0]) if weights else None
        return method

    return build


def _dacal(**options):
    acting = {"warm_up": 1, "mask": "own", "strong": True, "hard_weight": 0.5, **options}
    return lambda network: build_dacal(network, **acting)


def _blda(anchors=False, **options):
    acting = {"warm_up": 1, "min_pixels": 10, "tau": 0.5, "max_samples": 64, "anchor_samples": 256, **options}

    def build(network):
        known = fit_mixtures(torch.tensor([[1.0, 2, 4], [-2.0, -1, 0]]), 5, 2) if anchors else None
        return build_blda(network, anchors=known, **acting)

    return build


MADE = {
    **ADAPTATIONS,
    **{name: lambda network, name=name: build_adaptation(name, network) for name in PLUGINS},
    "source, weighted, ece": _source,
    "calsfda, anchored": _calsfda,
    "self-training, weighted": _frame(weights=True),
    "self-training, image": _frame(Frame(trust=Trust("image", 0.4), labels="soft", statistics="running")),
    "self-training, sampled": _frame(Frame(trust=Trust("one"), labels="sampled", statistics="shared", keep="teacher")),
    "self-training, daformer": _frame(Frame(base="daformer", feature_weight=0.1, feature_ratio=0.5)),
    "self-training, mic": _frame(Frame(base="mic", feature_weight=0.0, masking=Masking(block=4, labels="same"))),
    "self-training, source-free": _frame(FREE),
    "self-training, source-free, soft": _frame(replace(FREE, labels="soft")),
    "self-training, prototypes": _frame(prototypes=True),
    "dacal, acting": _frame(plugins=[_dacal()]),
    "dacal, last layer": _frame(plugins=[_dacal(route="last-layer", outer="source+hard", mask="same", hard_share=0.3)]),
    "dacal, network": _frame(plugins=[_dacal(route="network", strong=False)]),
    "dacal, now and then": _frame(plugins=[_dacal(warm_up=0, interval=3, bound=1.05, level_lr=1.0)]),
    "dacal, mic": _frame(Frame(base="mic", feature_weight=0.01, feature_ratio=0.5), plugins=[_dacal()]),
    "blda, acting": _frame(plugins=[_blda(density_weight=0.2)]),
    "blda, source-free": _frame(FREE, plugins=[_blda(anchors=True)]),
    "blda, mic": _frame(Frame(base="mic", feature_weight=0.0), plugins=[_blda()]),
    "dacal+blda": _frame(plugins=[_dacal(), _blda()]),
}
"""A method by a name that begins with its own."""


def needs(name, method):
    """What a batch must carry for it."""
    return {"target"} if "source-free" in name else method.requires


def only_required(batch, required):
    """The batch without anything that the method does not say it needs."""
    if "source" not in required:
        batch.source_images = batch.source_labels = None
    if "labels" not in required:
        batch.source_labels = None
    if "target" not in required:
        batch.target_images = None
    if "pseudo_labels" not in required:
        batch.target_labels = None
    return batch
