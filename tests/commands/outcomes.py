"""What tests of commands ask of an ended command and of the files that it opened."""


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
