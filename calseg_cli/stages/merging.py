"""Owns `calseg artifact merge` and `convert` over all kinds: images are copied or packed again, counts are added."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from calseg_cli.artifacts.codec import COMPRESSIONS
from calseg_cli.artifacts.provenance import provenance
from calseg_cli.artifacts.reader import Artifact, check_kind, open_artifact
from calseg_cli.artifacts.recipe import changes
from calseg_cli.artifacts.rewrite import convert, merge
from calseg_cli.artifacts.safe_open import PARTIAL
from calseg_cli.artifacts.verify import verify
from calseg_cli.engine.interrupt import StopRequest, stop_on_signals
from calseg_cli.engine.progress import Progress
from calseg_cli.errors import ArtifactError, ConfigError
from calseg_cli.metrics.tally import Tally
from calseg_cli.metrics.tally import merge as add_up
from calseg_cli.stages.logit_statistics import KIND as LOGIT_STATISTICS
from calseg_cli.stages.merging_prototypes import merge_prototypes
from calseg_cli.stages.merging_statistics import merge_statistics
from calseg_cli.stages.tally_file import write_tally


def merge_artifacts(
    paths: Sequence[Path], target: Path, *, command: Sequence[str], force: bool, told: Callable[[], None]
) -> str:
    """Merge artifacts of one kind into `target`; the content digest. Raises ArtifactError where they do not fit."""
    if any(path.absolute() == target.absolute() for path in paths):
        raise ArtifactError(f"{target} is one of the files to merge", "-o names another file")
    with ExitStack() as stack:
        sources = [stack.enter_context(open_artifact(path)) for path in paths]
        if sources[0].kind.name == "prototypes":
            return merge_prototypes(sources, target, command=command, force=force)
        if sources[0].kind.name == LOGIT_STATISTICS:
            return merge_statistics(sources, target, command=command, force=force)
        if sources[0].kind.name != "metrics":
            return merge(sources, target, force=force, told=told)
        for source in sources:
            check_kind(source, "metrics")
            differs = changes(_convention(sources[0].meta), _convention(source.meta))
            if differs:
                raise ArtifactError(
                    f"{source.path} was measured differently from {sources[0].path}: {'; '.join(differs)}",
                    "merge what was measured alike",
                )
        metrics = [Tally.from_arrays(source.arrays()) for source in sources]
        meta = {
            **sources[0].meta,
            "provenance": provenance(command, parents={f"part{n}": s.digest for n, s in enumerate(sources)}),
        }
    return write_tally(target, add_up(metrics), meta, force=force)


def _convention(meta: dict[str, Any]) -> dict[str, Any]:
    """What must agree: the class list, and how pixels were counted."""
    protocol = meta.get("protocol", {})
    return {"classes": meta["classes"]["names"], **{key: protocol.get(key) for key in ("grid", "values", "edges")}}


def convert_artifact(
    path: Path, target: Path, *, compression: str, dtype: str | None, resume: bool, force: bool, progress: Progress
) -> str:
    """Write `path` again as `target`, packed by `compression`; the content digest.

    A file without a seal is taken if every digest in it fits. Raises ArtifactError for damage, ConfigError for an
    unknown compression or type.
    """
    if compression not in COMPRESSIONS:
        raise ConfigError(f"unknown compression {compression!r}", f"known: {', '.join(COMPRESSIONS)}")
    if dtype not in (None, "float16", "float32"):
        raise ConfigError(f"unknown type {dtype!r}", "float16 or float32")
    if path.absolute() == target.absolute():
        raise ArtifactError(f"{target} is the file that is read", "-o names another file")
    with stop_on_signals() as stop, open_artifact(path, sealed=False) as source:
        if dtype is not None and source.kind.name != "logits":
            raise ConfigError(f"--dtype is for logits; {path} holds {source.kind.name}", "leave it out")
        _prove(source, progress, stop)
        progress.start("converting", len(source))

        def told() -> None:
            progress.advance()
            if stop:
                raise stop.error(
                    f"stopped; the images converted so far are kept in {target}{PARTIAL}",
                    "the same command with --resume goes on from there",
                )

        digest = convert(source, target, compression=compression, dtype=dtype, force=force, resume=resume, told=told)
        progress.finish()
    return digest


def _prove(source: Artifact, progress: Progress, stop: StopRequest) -> None:
    progress.start("proving", len(source))
    for what, wrong in verify(source):
        if wrong is not None:
            raise ArtifactError(f"{source.path}: {what}: {wrong}", "copy or write it again")
        progress.advance()
        if stop:
            raise stop.error(f"stopped while proving {source.path}; nothing is written yet", "run the command again")
    progress.finish()
