"""calseg config: what the configuration says after all its sources are heard."""

from typing import Annotated

import typer

from calseg_cli.commands._session import Session


def show(
    session: Session,
    *,
    sources: Annotated[bool, typer.Option("--sources/--no-sources", help="Say where each value came from.")] = True,
) -> None:
    """Print the resolved configuration as YAML, each value with the place it came from.

    Example: calseg config show --set pretrain.steps=100
    """
    resolved = session.load()
    session.result(
        {"config": resolved.to_dict(), "sources": resolved.sources},
        lambda console: console.print(resolved.dump_yaml(with_sources=sources), markup=False, soft_wrap=True, end=""),
    )


def schema(session: Session) -> None:
    """Print the JSON schema of calseg.yaml, for editors that complete and check as one types.

    Example: calseg config schema > calseg.schema.json
    """
    from calseg_cli.config import json_schema

    session.write(json_schema())
