"""What every test can ask for."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several tests run side by side; results must not depend on it

import pytest
import torch

torch.set_num_threads(1)

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scenes; tests that ask for it are skipped only where it is absent."""
    folder = Path(os.environ.get("CALSEG_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real scenes in {folder}; set CALSEG_DATA")
    return folder


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's CALSEG_* variables and terminal settings change no test."""
    for name in list(os.environ):
        if name.startswith("CALSEG_") and name != "CALSEG_DATA":
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_COLOR", "1")
