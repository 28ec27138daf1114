"""Stages in several processes: what is read off a disk is the main one's answer, and an end is told in one line."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from datetime import timedelta

import pytest

from calseg_cli.engine import distributed
from calseg_cli.engine.progress import Silent
from calseg_cli.errors import DataError
from calseg_cli.stages import evaluate as stage
from calseg_cli.stages.pretrain import _validation
from tests.ranks import together
from tests.stages.small_run import configured, make_folder, trained

TORN = """
import os, signal, sys

class Strikes:
    def find_spec(self, name, path=None, target=None):
        if name == "torch.nn":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Strikes())
sys.argv = ["calseg", "pretrain"]
from calseg_cli.app import main
main()
"""


def test_a_signal_while_torch_is_loading_ends_with_its_code_and_one_line(tmp_path):
    """To load torch again would end the process in its C++."""
    (tmp_path / "calseg.yaml").write_text("source: {root: s, classes: [a, b]}\n")
    torchrun = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", TORN],
        cwd=tmp_path,
        env={**os.environ, **torchrun},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 128 + signal.SIGTERM
    assert ran.stderr == "error: terminated; no unfinished result was left under a final name\n"


@pytest.mark.parametrize("found_by", [0, 1])
def test_whether_there_is_a_validation_is_the_main_processs_look(found_by):
    """All validate or none does; one that is to and cannot says why."""

    def work(ranks):
        def dataset(split, *, with_labels):
            if ranks.rank != found_by:
                raise DataError("no val here")
            return "images"

        return _validation(dataset, Silent(), ranks)

    ended = together(work, seconds=40)
    if found_by == 0:
        assert ended[1] == (4, "no val here")
    else:
        assert ended == [(0, None), (0, None)]


def test_a_report_may_take_longer_than_a_process_is_waited_for(tmp_path, monkeypatch):
    """Intervals and pictures of many images are the main process's work alone."""
    monkeypatch.chdir(make_folder(tmp_path, images=2))
    trained(tmp_path)
    real, patience = stage._reported, 3
    monkeypatch.setattr(distributed, "PATIENCE", timedelta(seconds=patience))
    monkeypatch.setattr(stage, "_reported", lambda *given: time.sleep(1.3 * patience) or real(*given))

    def evaluated(ranks):
        # `together` has connected the processes already
        monkeypatch.setattr(stage, "process_group", lambda device: nullcontext(ranks))
        found = stage.evaluate(configured(tmp_path), checkpoint=None, logits=None, out=None, progress=Silent())
        return found.scores.miou

    first, second = together(evaluated, seconds=60)
    assert first == second
    assert first[0] == 0
