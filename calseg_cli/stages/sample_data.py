"""Owns `calseg sample-data`: the embedded default's folder, images and calseg.yaml together."""

import shutil
from importlib import resources
from pathlib import Path
from typing import Any

from calseg_cli.artifacts.whole_file import write_whole
from calseg_cli.data.synthetic import write_sample_data
from calseg_cli.engine.progress import Progress
from calseg_cli.errors import DataError, disk_errors

CONFIG = "calseg.yaml"
_MARK = "SAMPLE_DATA.txt"  # only what bears it may be replaced


def write_sample_folder(folder: Path, *, seed: int, force: bool, progress: Progress) -> dict[str, Any]:
    """Write FOLDER/data and FOLDER/calseg.yaml. Raises DataError where either would be overwritten."""
    data = folder / "data"
    for path in (folder / CONFIG, data):
        if path.exists() and not force:
            raise DataError(f"{path} exists already", "--force replaces it, another folder keeps it")
    if data.exists() and not (data / _MARK).exists():
        raise DataError(f"{data} holds something that calseg sample-data did not write", "choose another folder")
    progress.note(f"drawing two street domains into {data}")
    fresh = folder / "data.partial"
    with disk_errors(data):
        shutil.rmtree(fresh, ignore_errors=True)
        write_sample_data(fresh, seed=seed)
        (fresh / _MARK).write_text(f"written by calseg sample-data --seed {seed}\n", encoding="utf-8")
        shutil.rmtree(data, ignore_errors=True)
        fresh.rename(data)
    text = resources.files("calseg_cli.sample_configs").joinpath("sample.yaml").read_text(encoding="utf-8")
    write_whole(folder / CONFIG, text)
    return {"folder": folder, "data": data, "config": folder / CONFIG}
