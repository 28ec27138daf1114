"""Owns proving that an artifact is what was written: every chunk read, every digest taken again."""

from collections.abc import Iterator
from pathlib import Path

from calseg_cli.artifacts.describe import check_items
from calseg_cli.artifacts.digests import array_digest, content_digest, item_digest, json_text
from calseg_cli.artifacts.kinds import check_item
from calseg_cli.artifacts.reader import Artifact
from calseg_cli.errors import ArtifactError


def verify(artifact: Artifact) -> Iterator[tuple[str, str | None]]:
    """(what, what is wrong with it or None) for each item, each array of the whole, and the whole, one after another.

    Every value is read. Nothing is raised for damage: it is what is reported.
    """
    for path in artifact.files:
        yield path.name, _rules(path)
    items: list[tuple[int, str]] = []
    for name in artifact.ids:
        yield name, _item(artifact, name)
        items.append((artifact.positions[name], artifact.item_digests[name]))
    arrays: dict[str, str] = {}
    for name in artifact.array_names:
        try:
            arrays[name] = array_digest(artifact.array(name))
            wrong = None
        except ArtifactError as error:
            wrong = error.message
        yield f"/arrays/{name}", wrong
    tables = {name: json_text(table) for name, table in artifact.meta.items()}
    found = content_digest(artifact.kind.name, tables, items, arrays)
    yield "the whole", None if found == artifact.digest else f"its content digest is {found}, not {artifact.digest}"


def _rules(path: Path) -> str | None:
    try:
        check_items(path)
    except ArtifactError as error:
        return error.message
    return None


def _item(artifact: Artifact, name: str) -> str | None:
    try:
        facts = artifact.item_facts(name)
        arrays = {key: artifact.item(name, key) for key in artifact.keys(name)}
        check_item(artifact.kind, name, arrays)
    except (ArtifactError, ValueError, KeyError, TypeError) as error:
        return str(error)
    wrong = [key for key, array in arrays.items() if facts["arrays"].get(key) != array_digest(array)]
    if wrong or set(facts["arrays"]) != set(arrays):
        return f"{', '.join(wrong) or 'its list of arrays'} is not what was written"
    if facts.get("id") != name or artifact.item_digests[name] != item_digest(facts):
        return "its description is not what was written"
    listed = artifact.geometry(name).to_attrs() if artifact.kind.has_geometry else {}
    if {**facts, **listed, "image_digest": artifact.image_digest(name)} != facts:
        return "its row in the list is not what was written"
    return None
