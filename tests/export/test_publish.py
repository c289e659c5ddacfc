"""Publishing, against a Hub on the loopback: what goes, what stays, and every refusal in one sentence."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from kdscale.errors import ExportError
from kdscale.export import Report, publish

from .hub import Hub, Repository

ALL = {"README.md", "config.json", "model.safetensors", "recipe.json"}
TOKEN = "hf_of_a_test"


def test_a_new_repository_is_private_and_gets_every_file(exported: Report, hub: Hub) -> None:
    done = publish(exported.folder, "org/deit", endpoint=hub.endpoint, token=TOKEN)
    held = hub.repositories["org/deit"]
    assert held.private
    assert done.visibility == "private"
    assert held.files == {name: (exported.folder / name).read_bytes() for name in ALL}
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert (done.card, done.commit, done.url) == ("sent", "1" * 40, f"{hub.endpoint}/org/deit")


def test_public_only_when_said(exported: Report, hub: Hub) -> None:
    assert publish(exported.folder, "org/deit", public=True, endpoint=hub.endpoint, token=TOKEN).visibility == "public"
    assert not hub.repositories["org/deit"].private


def test_an_existing_public_repository_is_refused_unless_said(exported: Report, hub: Hub) -> None:
    hub.repositories["org/deit"] = Repository(private=False)
    with pytest.raises(ExportError, match="exists and is public"):
        publish(exported.folder, "org/deit", endpoint=hub.endpoint, token=TOKEN)
    assert hub.repositories["org/deit"].files == {}
    publish(exported.folder, "org/deit", public=True, endpoint=hub.endpoint, token=TOKEN)
    assert hub.repositories["org/deit"].files.keys() == ALL


def test_a_private_repository_stays_private(exported: Report, hub: Hub) -> None:
    hub.repositories["org/deit"] = Repository(private=True)
    assert publish(exported.folder, "org/deit", public=True, endpoint=hub.endpoint, token=TOKEN).visibility == "private"


def test_a_card_on_the_hub_is_kept_without_force(exported: Report, hub: Hub) -> None:
    hub.repositories["org/deit"] = Repository(private=True, files={"README.md": b"by hand"})
    done = publish(exported.folder, "org/deit", endpoint=hub.endpoint, token=TOKEN)
    assert done.card == "kept"
    assert "--force replaces it" in "\n".join(done.lines())
    assert hub.repositories["org/deit"].files["README.md"] == b"by hand"
    assert hub.repositories["org/deit"].files.keys() == ALL
    assert publish(exported.folder, "org/deit", force=True, endpoint=hub.endpoint, token=TOKEN).card == "replaced"
    assert hub.repositories["org/deit"].files["README.md"] == (exported.folder / "README.md").read_bytes()


def test_a_pull_request_changes_nothing_itself(exported: Report, hub: Hub) -> None:
    hub.repositories["org/deit"] = Repository(private=False)
    done = publish(exported.folder, "org/deit", create_pr=True, endpoint=hub.endpoint, token=TOKEN)
    assert done.pull_request == f"{hub.endpoint}/org/deit/discussions/1"
    assert hub.repositories["org/deit"].files == {}
    assert hub.pull_requests[0].keys() == ALL
    with pytest.raises(ExportError, match="needs a repository"):
        publish(exported.folder, "org/other", create_pr=True, endpoint=hub.endpoint, token=TOKEN)


def test_only_files_of_an_export_go(copied: Path, hub: Hub) -> None:
    (copied / "secret.txt").write_text("mine")
    (copied / "checkpoints").mkdir()
    done = publish(copied, "org/deit", endpoint=hub.endpoint, token=TOKEN)
    assert hub.repositories["org/deit"].files.keys() == ALL
    assert done.left_out == ("checkpoints", "secret.txt")
    assert "left out, no part of an export: checkpoints, secret.txt" in done.lines()


def test_dry_run_needs_no_network_and_no_token(exported: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a dry run opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    _without_token(monkeypatch)
    plan = publish(exported.folder, "org/deit", dry_run=True)
    assert {name for name, _ in plan.files} == ALL
    assert sum(size for _, size in plan.files) > 1_000_000
    assert plan.title == "deit_tiny_distilled_patch16_224.kdscale_shake_five_clothes"
    assert (plan.repo, plan.visibility, plan.commit) == ("org/deit", "private", None)
    assert plan.card == "sent unless there is one"
    text = "\n".join(plan.lines())
    for fact in (
        "model.safetensors",
        f"{plan.files[2][1]:,}",
        plan.title,
        f"{plan.url} (private)",
        "dry run",
    ):
        assert fact in text
    assert publish(exported.folder, "org/deit", dry_run=True, force=True, public=True).card == "sent, over any other"


def test_no_token(exported: Report, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_token(monkeypatch)
    with pytest.raises(ExportError, match="hf auth login"):
        publish(exported.folder, "org/deit", endpoint=hub.endpoint)
    assert hub.requests == []


def _without_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")


@pytest.mark.parametrize("repo", ["deit", "a/b/c", "org/de it", "org/-deit", "org/a..b", ""])
def test_malformed_names(exported: Report, repo: str) -> None:
    with pytest.raises(ExportError, match="is no repository's name") as error:
        publish(exported.folder, repo, dry_run=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("status", "says"),
    [(401, "refuses the token"), (403, "may not write to org/deit"), (404, "not there or not visible"), (400, "answered 400")],
)
def test_what_the_server_refuses(exported: Report, hub: Hub, status: int, says: str) -> None:
    hub.repositories["org/deit"] = Repository(private=True)
    hub.refuse = status
    with pytest.raises(ExportError, match=says) as error:
        publish(exported.folder, "org/deit", endpoint=hub.endpoint, token=TOKEN)
    assert "\n" not in str(error.value)


def test_no_right_to_make_a_repository(exported: Report, hub: Hub) -> None:
    hub.refuse_creation = 403
    with pytest.raises(ExportError, match="may not write to org/deit"):
        publish(exported.folder, "org/deit", endpoint=hub.endpoint, token=TOKEN)


def test_unreachable(exported: Report) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(ExportError, match="cannot be reached"):
        publish(exported.folder, "org/deit", endpoint=endpoint, token=TOKEN)


def test_what_is_no_export(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is no folder"):
        publish(tmp_path / "absent", "org/deit", dry_run=True)
    with pytest.raises(ExportError, match=r"has no config\.json"):
        publish(tmp_path, "org/deit", dry_run=True)
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    with pytest.raises(ExportError, match="is no export of kdscale"):
        publish(tmp_path, "org/deit", dry_run=True)


@pytest.mark.parametrize("name", sorted(ALL - {"config.json"}))
def test_a_file_is_missing(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(ExportError, match=f"has no {name}"):
        publish(copied, "org/deit", dry_run=True)


def test_other_weights_than_were_proved(copied: Path) -> None:
    weights = bytearray((copied / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copied / "model.safetensors").write_bytes(weights)
    with pytest.raises(ExportError, match="not the file that was proved"):
        publish(copied, "org/deit", dry_run=True)
    (copied / "model.safetensors").write_bytes(weights[:100])
    with pytest.raises(ExportError, match="cannot be read"):
        publish(copied, "org/deit", dry_run=True)


def test_a_spoilt_configuration(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"label_names": ["one"]}))
    with pytest.raises(ExportError, match="list of 5 label_names"):
        publish(copied, "org/deit", dry_run=True)
    (copied / "config.json").write_text(json.dumps(config | {"model_args": None}))
    with pytest.raises(ExportError, match="has no model_args"):
        publish(copied, "org/deit", dry_run=True)
    (copied / "config.json").write_text("{")
    with pytest.raises(ExportError, match="is not JSON"):
        publish(copied, "org/deit", dry_run=True)


def test_a_card_without_metadata(copied: Path) -> None:
    (copied / "README.md").write_text("# only words\n")
    with pytest.raises(ExportError, match="metadata"):
        publish(copied, "org/deit", dry_run=True)
