"""Corrections on the road: read, checked, applied, and told in what comes out."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.config import load_config
from calseg_cli.engine.infer import Prediction
from calseg_cli.engine.progress import Silent
from calseg_cli.errors import ArtifactError, CalsegError, ConfigError
from calseg_cli.methods.correction import Correction
from calseg_cli.stages import corrections
from calseg_cli.stages.corrections import corrected, load_correction, load_corrections, write_correction
from calseg_cli.stages.pseudo_label import pseudo_label


class Scale(Correction):
    """Logits times a number a class, and swapped ends: changes confidence and labels."""

    kind = "calibrator"

    def __init__(self, factors, labels="source"):
        self.factors, self.labels = np.asarray(factors, np.float64), labels

    def __call__(self, logits, image=None):
        return logits * torch.from_numpy(self.factors).float()[:, None, None]

    def describe(self):
        return f"scaled by {self.factors.tolist()}"

    def to_arrays(self):
        return {"factors": self.factors}

    def facts(self):
        return {"method": "scale", "labels": self.labels}

    @classmethod
    def from_artifact(cls, arrays, facts):
        if not np.isfinite(arrays["factors"]).all():
            raise ArtifactError("a factor is not finite", "fit it again")
        return cls(arrays["factors"], facts["labels"])


class Looking(Scale):
    """One that wants the image."""

    needs_image = True

    def __call__(self, logits, image=None):
        assert image is not None
        return logits + image.mean()


@pytest.fixture(autouse=True)
def known(monkeypatch, tmp_path):
    (tmp_path / "calseg.yaml").write_text("target: {root: target}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(corrections, "_class_of", lambda kind, method: {"scale": Scale, "look": Looking}[method])


def write(path, factors=(1.0, 2.0, 0.5, 1.0), labels="source", names=("road", "car", "sky", "ghost"), kind=Scale):
    resolved = load_config(None, flags={}, environ={})
    palette = [(0, 0, n) for n in range(len(names))]
    write_correction(
        path,
        kind(factors, labels),
        resolved,
        class_names=names,
        palette=palette,
        protocol={"split": "val"},
        parents={},
        files={},
        force=True,
    )
    return path


def test_what_is_written_is_read(tmp_path):
    loaded = load_correction(write(tmp_path / "scale.h5"), "calibrator")
    np.testing.assert_array_equal(loaded.correction.factors, [1.0, 2.0, 0.5, 1.0])
    assert loaded.suffix == "-scale"
    with open_artifact(tmp_path / "scale.h5", "calibrator") as artifact:
        assert artifact.digest == loaded.digest
        assert artifact.meta["protocol"] == {"split": "val", "correction": {"method": "scale", "labels": "source"}}


@pytest.mark.parametrize(("name", "suffix"), [("t.h5", "-t-oracle"), ("oracle.h5", "-oracle")])
def test_a_correction_fitted_on_target_labels_is_called_oracle_everywhere(tmp_path, name, suffix):
    loaded = load_correction(write(tmp_path / name, labels="target: oracle, val"), "calibrator")
    assert loaded.correction.oracle
    assert loaded.suffix == suffix
    assert corrections.told([loaded])["labels_used_for"].startswith("oracle")


def test_a_file_of_another_kind_or_of_none_is_refused(tmp_path):
    path = write(tmp_path / "a.h5")
    with pytest.raises(ArtifactError, match="calibrator"):
        load_correction(path, "prototypes")
    with pytest.raises(ArtifactError, match="a factor is not finite"):
        load_correction(write(tmp_path / "b.h5", [1.0, 2.0, float("inf"), 1.0]), "calibrator")
    with pytest.raises(ArtifactError, match=r"b\.h5"):
        load_corrections(None, tmp_path / "b.h5")


class FixedRoad:
    """A road of one prediction."""

    def __init__(self, names=("road", "car", "sky", "ghost"), dtype=torch.float16):
        self.class_names, self.palette, self.dtype = names, tuple((0, 0, n) for n in range(len(names))), dtype
        self.dataset = SimpleNamespace(items=[SimpleNamespace(id="a")], read_for_evaluation=self._read)
        self.protocol, self.parents, self.files = {"split": "test"}, {"checkpoint": "sha256:1"}, {}
        self.network_digest, self.read = "sha256:1", 0

    def _read(self, index):
        self.read += 1
        return SimpleNamespace(image=np.full((4, 4, 3), 51, np.uint8))

    def stream(self, indices=None):
        logits = torch.randn(len(self.class_names), 4, 4, generator=torch.Generator().manual_seed(0))
        yield Prediction("a", logits.to(self.dtype), Geometry((4, 4), (4, 4)), None)


def test_logits_are_corrected_in_float32(tmp_path):
    """In float16 a temperature would make ties, and change classes."""
    road = FixedRoad()
    loaded = load_correction(write(tmp_path / "scale.h5"), "calibrator")
    (before,), (after,) = list(road.stream()), list(corrected(road, [loaded]).stream())
    factors = torch.tensor([1.0, 2.0, 0.5, 1.0])[:, None, None]
    assert after.logits.dtype == torch.float32
    assert torch.equal(after.logits, before.logits.float() * factors)
    assert road.read == 0


def test_the_result_says_by_what_it_was_corrected(tmp_path):
    loaded = load_correction(write(tmp_path / "scale.h5"), "calibrator")
    road = corrected(FixedRoad(), [loaded])
    assert road.protocol == {
        "split": "test",
        "stored_as": "float32",
        "corrected_by": ["scaled by [1.0, 2.0, 0.5, 1.0]"],
    }
    assert road.parents == {"checkpoint": "sha256:1", "calibrator": loaded.digest}
    assert road.files == {"calibrator": tmp_path / "scale.h5"}


def test_without_corrections_the_road_is_itself():
    road = FixedRoad()
    assert corrected(road, []) is road


def test_other_classes_are_refused(tmp_path):
    loaded = load_correction(write(tmp_path / "scale.h5"), "calibrator")
    with pytest.raises(ArtifactError, match="class"):
        corrected(FixedRoad(names=("car", "road", "sky", "ghost")), [loaded])


def test_logits_made_differently_are_refused(tmp_path):
    """Prototypes at stride 4 are not those at stride 8."""
    loaded = load_correction(write(tmp_path / "scale.h5"), "calibrator")
    road = FixedRoad()
    road.protocol = {"grid": "stride 8"}
    assert corrected(road, [loaded])  # it does not say on which grid it was fitted
    loaded = replace(loaded, protocol={"grid": "stride 4"})
    with pytest.raises(ArtifactError, match="grid was stride 4, is stride 8"):
        corrected(road, [loaded])


def test_the_image_is_given_to_those_who_look(tmp_path):
    path = write(tmp_path / "look.h5")
    loaded = corrections.Loaded(Looking([1.0]), path, "sha256:2")
    road = FixedRoad(dtype=torch.float32)
    (before,), (after,) = list(road.stream()), list(corrected(road, [loaded]).stream())
    torch.testing.assert_close(after.logits, before.logits + 0.2)
    assert road.read == 1


def test_what_is_no_number_is_an_error_that_names_the_image(tmp_path):
    loaded = load_correction(write(tmp_path / "scale.h5", [1e300, 1.0, 1.0, 1.0]), "calibrator")
    with pytest.raises(CalsegError, match="of a are not finite"):
        list(corrected(FixedRoad(), [loaded]).stream())


def label(correction=None, out="labels.h5"):
    resolved = load_config(None, flags={"pseudo_label.threshold": "none"}, environ={})
    given = [correction] if correction else []
    return pseudo_label(resolved, given, logits=None, out=Path(out), resume=False, force=True, progress=Silent())


def test_pseudo_labels_of_corrected_logits(folder):
    """Sky's logits are halved and the car's doubled, so some labels change, to those of the corrected logits."""
    plain = label()
    loaded = load_correction(write(folder / "scale.h5", (1.0, 4.0, 0.0, 1.0)), "calibrator")
    done = label(loaded, "corrected.h5")
    assert plain.digest != done.digest
    with open_artifact(Path("corrected.h5")) as found, open_artifact(Path("labels.h5")) as before:
        assert found.meta["provenance"]["parents"]["calibrator"] == loaded.digest
        assert found.meta["recipe"]["parents"]["calibrator"] == loaded.digest
        assert (np.concatenate([found.item(n, "label").ravel() for n in found.ids]) == 2).sum() < (
            np.concatenate([before.item(n, "label").ravel() for n in before.ids]) == 2
        ).sum()


def test_pseudo_labels_cannot_show_images_to_a_correction(folder):
    loaded = corrections.Loaded(Looking([1.0] * 4), write(folder / "look.h5"), "sha256:2")
    with pytest.raises(ConfigError, match="looks at the images"):
        label(loaded)
