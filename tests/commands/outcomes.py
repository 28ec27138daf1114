"""What tests of commands ask of an ended command and of the files that it opened."""

import json
import signal
from functools import partial
from unittest.mock import patch

from calseg_cli.engine.progress import Silent


def failed(ran, code):
    """One line of error, and a hint at most."""
    assert ran.code == code, ran.err
    told = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert "Traceback" not in ran.err
    return told[0]


def labels(paths):
    """Label files and folders among them."""
    return [path for path in paths if "labels" in path and "calseg_cli" not in path]


def log(folder):
    """The records of a stage's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights(path):
    """The tensors of a checkpoint's network."""
    from calseg_cli.engine.checkpoint import read_checkpoint

    return read_checkpoint(path).network


def keep_few(folder, count=8):
    """Take all but the first images of every split away, and their labels: what is tested does not need more."""
    for images in (folder / "data").glob("*/*/images"):
        for image in sorted(images.glob("*.png"))[count:]:
            image.unlink()
            (images.parent / "labels" / image.name).unlink(missing_ok=True)


def draw_few(folder, count=20, **options):
    """What `calseg sample-data` writes, but the first images of every split alone; the same files."""
    from calseg_cli.stages import sample_data

    few = partial(sample_data.write_sample_data, train=count, val=count, test=count)
    with patch.object(sample_data, "write_sample_data", few):
        sample_data.write_sample_folder(folder, **{"seed": 0, "force": False, "progress": Silent(), **options})


def killed_at(calseg, folder, path, *words):
    """Start a command and kill it as soon as `path` is there."""
    process = calseg.start(*words, cwd=folder)
    process.wait_for(path)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def same_weights(first, second):
    """Whether two checkpoints hold the same network, bit for bit."""
    import torch

    one, two = weights(first), weights(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
