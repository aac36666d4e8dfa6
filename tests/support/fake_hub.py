"""A Hub on this machine: serves folders as model repositories, and takes commits, as far as the clients here ask."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class FakeHub(ThreadingHTTPServer):
    """Repositories are the folders `root/owner/name`; each has one branch, `main`, of one commit."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.commits: list[tuple[str, list[str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, repo: str) -> dict[str, Path]:
        folder = self.root / repo
        return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}

    def sha(self, repo: str) -> str:
        """A commit's name: of all that is in it."""
        digest = hashlib.sha1(repo.encode())
        for name, path in self.files(repo).items():
            digest.update(name.encode() + path.read_bytes())
        return digest.hexdigest()


@contextmanager
def serving(root: Path) -> Iterator[FakeHub]:
    """Run a Hub over `root` in a thread."""
    root.mkdir(parents=True, exist_ok=True)
    hub = FakeHub(root)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


def environment(url: str, home: Path) -> dict[str, str]:
    """Variables for a process whose Hub is at `url`, and whose caches are new folders in `home`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    ours = {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home / "huggingface"),
        "HF_MODULES_CACHE": str(home / "modules"),
        "HF_TOKEN": "hf_of_nobody",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }
    return inherited | ours


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self._parts()
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            repo, asked = "/".join(parts[2:4]), parts[4:5]
            if not (self.server.root / repo).is_dir():
                return self._missing("RepoNotFound")
            return self._json(self._tree(repo) if asked == ["tree"] else self._info(repo))
        if len(parts) > 4 and parts[2] == "resolve":
            repo, name = "/".join(parts[:2]), "/".join(parts[4:])
            path = self.server.files(repo).get(name)
            if path is None:
                known = (self.server.root / repo).is_dir()
                return self._missing("EntryNotFound" if known else "RepoNotFound", repo if known else None)
            content = path.read_bytes()
            return self._answer(200, content, {"ETag": f'"{_blob(content)}"', "X-Repo-Commit": self.server.sha(repo)})
        return self._missing("RepoNotFound")

    def do_POST(self) -> None:
        body, parts = self._body(), self._parts()
        if parts == ["api", "validate-yaml"]:
            return self._json({"errors": [], "warnings": []})
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            (self.server.root / repo).mkdir(parents=True, exist_ok=True)
            return self._json({"url": f"{self.server.url}/{repo}", "name": repo, "id": repo})
        repo, action = "/".join(parts[2:4]), parts[4]
        if action == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            plan = {"uploadMode": "regular", "shouldIgnore": False}
            return self._json({"files": [{"path": name, **plan} for name in names]})
        added = [item["value"] for item in map(json.loads, body.splitlines()) if item["key"] == "file"]
        for file in added:
            path = self.server.root / repo / file["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(file["content"]))
        self.server.commits.append((repo, [file["path"] for file in added]))
        sha = self.server.sha(repo)
        return self._json({"success": True, "commitOid": sha, "commitUrl": f"{self.server.url}/{repo}/commit/{sha}"})

    def _info(self, repo: str) -> dict[str, Any]:
        siblings = [{"rfilename": name} for name in self.server.files(repo)]
        return {"id": repo, "modelId": repo, "sha": self.server.sha(repo), "siblings": siblings, "tags": []}

    def _tree(self, repo: str) -> list[dict[str, Any]]:
        contents = {name: path.read_bytes() for name, path in self.server.files(repo).items()}
        return [
            {"type": "file", "path": name, "size": len(content), "oid": _blob(content)}
            for name, content in contents.items()
        ]

    def _parts(self) -> list[str]:
        return [unquote(part) for part in urlsplit(self.path).path.split("/") if part]

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _json(self, content: Any) -> None:
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _missing(self, code: str, repo: str | None = None) -> None:
        commit = {} if repo is None else {"X-Repo-Commit": self.server.sha(repo)}
        self._answer(404, b"{}", {"X-Error-Code": code, "X-Error-Message": "not here", **commit})

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        """Nothing: tests are silent."""


def _blob(content: bytes) -> str:
    """Git's name of a file's content, which clients tell files apart by."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
