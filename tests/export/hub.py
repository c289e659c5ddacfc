"""A Hub of our own on the loopback: just enough of its interface for an upload, and a memory of what it was told."""

from __future__ import annotations

import base64
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)


class Hub:
    """``repositories`` by name; ``refuse``: the status with which every request is answered, where it is set."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()
        self.pull_requests: list[dict[str, bytes]] = []
        self.refuse: int | None = None
        self.refuse_creation: int | None = None
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self._note()
        if self.hub.refuse:
            return self._say(self.hub.refuse, {"error": "no"})
        name = self.path.removeprefix("/api/models/").split("?")[0]
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self._say(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        siblings = [{"rfilename": file} for file in repository.files]
        return self._say(200, {"id": name, "private": repository.private, "siblings": siblings, "sha": "0" * 40})

    def do_POST(self) -> None:
        self._note()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.hub.refuse:
            return self._say(self.hub.refuse, {"error": "no"})
        path, _, query = self.path.partition("?")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._say(200, {"errors": [], "warnings": []})
        name, verb = "/".join(path.split("/")[3:5]), path.split("/")[5]
        if verb == "preupload":
            files = json.loads(body)["files"]
            return self._say(
                200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        return self._commit(name, [json.loads(line) for line in body.splitlines()], "create_pr=1" in query)

    def _create(self, wish: dict[str, Any]) -> None:
        if self.hub.refuse_creation:
            return self._say(self.hub.refuse_creation, {"error": "You don't have the rights"})
        name = f"{wish['organization']}/{wish['name']}"
        self.hub.repositories[name] = Repository(private=wish.get("visibility") == "private" or bool(wish.get("private")))
        return self._say(200, {"url": f"{self.hub.endpoint}/{name}"})

    def _commit(self, name: str, lines: list[dict[str, Any]], pull_request: bool) -> None:
        sent = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"}
        if pull_request:
            self.hub.pull_requests.append(sent)
        else:
            self.hub.repositories[name].files |= sent
        url = f"{self.hub.endpoint}/{name}"
        answer = {"commitUrl": f"{url}/commit/1", "commitOid": "1" * 40, "pullRequestUrl": f"{url}/discussions/1"}
        return self._say(200, answer)

    def _note(self) -> None:
        self.hub.requests.append((self.command, self.path.partition("?")[0]))
        self.hub.tokens.add(self.headers.get("Authorization"))

    def _say(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        text = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(text)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)
