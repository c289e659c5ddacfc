"""An export's way to the Hub: private unless told, one commit, never over a card that somebody may have written there.

A card that the Hub already holds is left as it is and everything else goes, unless ``force``; so weights can be renewed
under a card that was edited there. Only the files of an export go, whatever else lies in the folder. An existing public
repository is refused where nobody said ``public``: a default must not make weights public.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from ..errors import ExportError
from .card import read_card
from .config import FILES
from .folder import file_sha256

CARD = "README.md"
WANTED = ("architecture", "num_classes", "label_names", "model_args", "pretrained_cfg")
TRANSPORT: type[Exception] = HfHubHTTPError.__bases__[0]  # the HTTP library's own root, whichever one this version uses
Fate = Literal["sent", "kept", "replaced", "sent unless there is one", "sent, over any other"]


@dataclass(frozen=True, slots=True)
class Publication:
    """What went to the Hub, or would go."""

    repo: str
    url: str
    visibility: Literal["private", "public"]
    title: str  # of the card
    files: tuple[tuple[str, int], ...]  # name, bytes
    left_out: tuple[str, ...]  # what lies in the folder and is no part of an export
    card: Fate
    commit: str | None = None  # None: a dry run
    pull_request: str | None = None

    def lines(self) -> list[str]:
        """What happened, or would, in lines for a reader."""
        files = [f"{size:>12,}  {name}" for name, size in self.files]
        left_out = [f"left out, no part of an export: {', '.join(self.left_out)}"] if self.left_out else []
        card = f"card: {self.title} ({self.card})"
        if self.card == "kept":
            card += "; --force replaces it"
        done = "dry run: nothing was sent; target" if self.commit is None else "uploaded to"
        where = f"{done} {self.pull_request or self.url} ({self.visibility})"
        return [*files, *left_out, card, where]


def publish(
    folder: Path,
    repo: str,
    *,
    public: bool = False,
    dry_run: bool = False,
    force: bool = False,
    create_pr: bool = False,
    endpoint: str | None = None,
    token: str | None = None,
) -> Publication:
    """Uploads the export in ``folder`` to ``repo`` ('ORG/NAME'), which is made where there is none (not for a pull request).

    ``dry_run`` checks the folder and says what would go, without a connection. ``token``: the saved one where ``None``.
    Raises ExportError: the folder is no sound export, no token, a malformed name, or what the server says against it.
    """
    check_repo(repo)
    where = (endpoint or constants.ENDPOINT).rstrip("/")
    plan = _plan(folder, repo, public, force, where)
    if dry_run:
        return plan
    token = token or get_token()
    if not token:
        raise ExportError("there is no token for the Hub: run `hf auth login`, or set HF_TOKEN")
    with _one_line(where, repo):
        return _send(HfApi(endpoint=where, token=token), folder, plan, public, force, create_pr)


def _plan(folder: Path, repo: str, public: bool, force: bool, endpoint: str) -> Publication:
    title = check_export(folder)
    files = tuple((name, (folder / name).stat().st_size) for name in FILES if (folder / name).is_file())
    left_out = tuple(sorted(path.name for path in folder.iterdir() if path.name not in FILES))
    fate: Fate = "sent, over any other" if force else "sent unless there is one"
    return Publication(repo, f"{endpoint}/{repo}", "public" if public else "private", title, files, left_out, fate)


def _send(api: Any, folder: Path, plan: Publication, public: bool, force: bool, create_pr: bool) -> Publication:
    there = _prepare(api, plan.repo, public, create_pr)
    card_there = any(sibling.rfilename == CARD for sibling in there.siblings or ())
    sent = tuple((name, size) for name, size in plan.files if force or name != CARD or not card_there)
    done = api.create_commit(
        plan.repo,
        [CommitOperationAdd(name, folder / name) for name, _ in sent],
        commit_message=f"Upload {plan.title}",
        parent_commit=there.sha,  # refused where somebody wrote a card since we looked
        create_pr=create_pr,
    )
    return replace(
        plan,
        visibility="private" if there.private else "public",
        files=sent,
        card="sent" if not card_there else "replaced" if force else "kept",
        commit=done.oid,
        pull_request=done.pr_url,
    )


def check_repo(repo: str) -> None:
    """Raises ExportError for a name that is not ORG/NAME in the Hub's letters."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ExportError(f"{repo!r} is no repository's name: {error}") from None
    if repo.count("/") != 1:
        raise ExportError(f"{repo!r} is no repository's name: write ORG/NAME or USER/NAME")


def check_export(folder: Path) -> str:
    """The card's title. Raises ExportError where the folder is no export, or is not whole, or its weights were changed."""
    config = _config(folder)
    for name in ("model.safetensors", CARD, "recipe.json", *(["model.py"] if config.get("family") else [])):
        if not (folder / name).is_file():
            raise ExportError(f"{folder} has no {name}: export again")
    missing = [name for name in WANTED if config.get(name) is None]
    if missing:
        raise ExportError(f"{folder}/config.json has no {', '.join(missing)}: export again")
    if not isinstance(config["label_names"], list) or len(config["label_names"]) != config["num_classes"]:
        raise ExportError(f"{folder}/config.json must have a list of {config['num_classes']} label_names, one a class")
    try:
        with safe_open(folder / "model.safetensors", "pt") as file:
            empty = not list(file.keys())
    except (OSError, SafetensorError) as error:
        raise ExportError(f"{folder}/model.safetensors cannot be read ({error}): export again") from None
    if empty or file_sha256(folder / "model.safetensors") != config["kdscale"].get("weights_sha256"):
        raise ExportError(f"{folder}/model.safetensors is not the file that was proved at export: export again")
    title, _ = read_card((folder / CARD).read_text(encoding="utf-8"))
    return title or f"{config['architecture']}"


def _config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ExportError(f"{folder} is no folder: give one that `kdscale export` wrote")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{folder} has no config.json: give a folder that `kdscale export` wrote") from None
    except ValueError as error:
        raise ExportError(f"{folder}/config.json is not JSON ({error}): export again") from None
    if not isinstance(config, dict) or not isinstance(config.get("kdscale"), dict):
        raise ExportError(f"{folder} is no export of kdscale: give a folder that `kdscale export` wrote")
    return config


def _prepare(api: Any, repo: str, public: bool, create_pr: bool) -> Any:
    """What the Hub says of the repository, made private or public now where there was none."""
    try:
        there = api.model_info(repo)
    except RepositoryNotFoundError:
        if create_pr:
            raise ExportError(
                f"{repo} does not exist or this token may not see it: a pull request needs a repository"
            ) from None
        api.create_repo(repo, private=not public)
        return api.model_info(repo)
    if not there.private and not public and not create_pr:
        raise ExportError(f"{repo} exists and is public: say --public to upload to it, or choose another name")
    return there


@contextmanager
def _one_line(endpoint: str, repo: str) -> Iterator[None]:
    """Turns what the Hub, its client and the network raise into one sentence with a cure."""
    try:
        yield
    except HfHubHTTPError as error:
        raise ExportError(_refusal(error, endpoint, repo)) from None
    except (OSError, TRANSPORT) as error:
        raise ExportError(
            f"{endpoint} cannot be reached ({' '.join(str(error).split())}): check the network and try again"
        ) from None
    except (ValueError, KeyError) as error:
        raise ExportError(f"{endpoint} does not take the upload to {repo} ({' '.join(str(error).split())})") from None


def _refusal(error: Any, endpoint: str, repo: str) -> str:
    code = error.response.status_code
    said = " ".join(str(error.server_message or "").split())
    detail = f" ({said})" if said else ""
    cures = {
        401: f"{endpoint} refuses the token{detail}: run `hf auth login` again, or set HF_TOKEN",
        403: f"this token may not write to {repo}{detail}: use one with write access to its owner",
        404: f"{repo} is not there or not visible to this token{detail}: check the name and the token",
    }
    return cures.get(code, f"{endpoint} answered {code}{detail} to the upload to {repo}: try again later")
