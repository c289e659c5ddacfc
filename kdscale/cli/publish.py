"""``kdscale publish``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .arguments import quiet_libraries

HELP = """Upload an exported folder to a model hub.

Private unless told; an existing card stays unless --force."""

FolderWord = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `kdscale export` wrote.")]
Repo = Annotated[str, typer.Option("--repo", metavar="ORG/NAME", help="The repository to upload to.")]
Public = Annotated[bool, typer.Option("--public", help="Create it for everyone to see.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List what would go, and send nothing.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the card that the repository has.")]
Pr = Annotated[bool, typer.Option("--create-pr", help="Propose the change in place of making it.")]
Endpoint = Annotated[str | None, typer.Option("--endpoint", help="Another hub than the default one.")]


def run(
    folder: FolderWord,
    repo: Repo,
    public: Public = False,
    dry_run: DryRun = False,
    force: Force = False,
    create_pr: Pr = False,
    endpoint: Endpoint = None,
) -> None:
    quiet_libraries()
    from ..export.publish import publish

    done = publish(folder, repo, public=public, dry_run=dry_run, force=force, create_pr=create_pr, endpoint=endpoint)
    for line in done.lines():
        typer.echo(line)
