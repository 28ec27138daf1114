"""Owns `calseg --version`: what a bug report needs."""

import sys

import calseg_cli


def version_text() -> str:
    """Calseg's version and those of what it stands on, one a line."""
    from calseg_cli.artifacts.provenance import package_versions

    versions = {"calseg": calseg_cli.__version__, "python": sys.version.split()[0], **package_versions()}
    return "".join(f"{name} {number}\n" for name, number in versions.items())
