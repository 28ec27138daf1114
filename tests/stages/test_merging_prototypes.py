"""Prototypes of parts: merged they are those of the whole, bit for bit, and what was counted otherwise is refused."""

import pytest
from PIL import Image

from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.config import load_config
from calseg_cli.engine.progress import Silent
from calseg_cli.errors import ArtifactError, DataError
from calseg_cli.stages.calibrate_prototypes import calibrate_prototypes
from calseg_cli.stages.corrections import load_correction
from calseg_cli.stages.merging import merge_artifacts
from calseg_cli.stages.prototype_input import Asked


def run(*, logits=None, asked=None, out=None, **options):
    resolved = load_config(None, flags={f"prototypes.{key}": value for key, value in options.items()}, environ={})
    return calibrate_prototypes(resolved, asked or Asked(logits), source=None, out=out, force=False, progress=Silent())


def merged(files, target):
    return merge_artifacts(files, target, command=["calseg"], force=False, told=lambda: None)


@pytest.mark.parametrize("cuts", [(2,), (1, 3), (1, 2, 3, 4)])
def test_merged_parts_are_the_whole_bit_for_bit(bench, folder, cuts):
    whole = run()
    parts = []
    for first, last in zip((0, *cuts), (*cuts, 5), strict=True):
        images = folder / "target/train/images"
        logits = bench.write_logits(folder / f"logits{first}.h5", bench.ids[first:last], images=images)
        parts.append(run(logits=logits, out=folder / f"part{first}.h5", unseen="onehot").artifact)
    merged(parts[::-1], folder / "all.h5")
    with open_artifact(folder / "all.h5", "prototypes") as found, open_artifact(whole.artifact) as wanted:
        assert sorted(found.array_names) == sorted(wanted.array_names)
        for name, array in wanted.arrays().items():
            assert found.array(name).tolist() == array.tolist()
        assert found.meta["protocol"]["correction"]["fitted_on"]["images"] == 5
        assert found.meta["protocol"]["domain"] == "target"
    load_correction(folder / "all.h5", "prototypes")


def test_what_cannot_be_merged(bench, folder):
    halves = [bench.write_logits(folder / f"l{n}.h5", ids) for n, ids in enumerate((bench.ids[:2], bench.ids[2:]))]
    one = run(logits=halves[0], out=folder / "one.h5").artifact
    other = run(logits=halves[1], out=folder / "other.h5", weight_power=2.0).artifact
    with pytest.raises(ArtifactError, match=r"options.weight_power was 1.0, is 2.0"):
        merged([one, other], folder / "m.h5")
    with pytest.raises(DataError, match="counted twice"):
        merged([one, run(logits=halves[0], out=folder / "again.h5").artifact], folder / "m.h5")
    top = [run(logits=half, out=folder / f"top{n}.h5", top_frac=0.5).artifact for n, half in enumerate(halves)]
    with pytest.raises(ArtifactError, match="top_frac"):
        merged(top, folder / "m.h5")
    for name in ("a", "b"):
        Image.new("L", (16, 12), ord(name)).save(folder / f"{name}.png")
    alike = [bench.write_logits(folder / f"s{n}.h5", [bench.ids[n]]) for n in (0, 3)]
    masked = [
        run(asked=Asked(path, mask=folder / f"{name}.png"), out=folder / f"m{name}.h5", prior=1.0).artifact
        for name, path in zip("ab", alike, strict=True)
    ]
    with pytest.raises(ArtifactError, match="mask was sha256"):
        merged(masked, folder / "m.h5")
    fewer = bench.write_logits(folder / "three.h5", classes=bench.names[:3])
    with pytest.raises(ArtifactError, match="class list"):
        merged([one, run(logits=fewer, out=folder / "three-made.h5").artifact], folder / "m.h5")
    with pytest.raises(ArtifactError, match="holds logits, not prototypes"):
        merged([one, halves[1]], folder / "m.h5")
    assert not (folder / "m.h5").exists()


def test_another_image_of_the_same_id_is_another_image(bench, folder):
    other = folder / "elsewhere"
    for name, (height, width) in zip(bench.ids, bench.sizes, strict=True):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height)).save(other / f"{name}.png")
    path = bench.write_logits(folder / "other.h5", images=other)
    second = run(logits=path, out=folder / "second.h5").artifact
    alone = run()
    merged([alone.artifact, second], folder / "both.h5")
    with open_artifact(folder / "both.h5") as artifact:
        assert artifact.array("pixels").tolist() == (2 * alone.prototypes.state.pixels).tolist()
