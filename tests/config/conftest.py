"""What the tests of the configuration share."""

import pytest

from calseg_cli.config import load_config
from calseg_cli.errors import ConfigError


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Write calseg.yaml into a fresh working directory and load it, as a command started there does."""
    monkeypatch.chdir(tmp_path)

    def load(text="", *, sets=(), flags=None, environ=None):
        (tmp_path / "calseg.yaml").write_text(text, encoding="utf-8")
        return load_config(None, sets=sets, flags=flags or {}, environ=environ or {})

    return load


@pytest.fixture
def complaints(load):
    """The lines of the error that loading ends in, its count left out."""

    def complaints(text="", **others):
        with pytest.raises(ConfigError) as raised:
            load(text, **others)
        assert raised.value.exit_code == 2
        assert raised.value.hint
        lines = raised.value.message.splitlines()
        if len(lines) > 1:
            assert lines[0] == f"{len(lines) - 1} mistakes in the configuration"
        return lines[1:] or lines

    return complaints
