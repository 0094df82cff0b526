"""A Hugging Face Hub on loopback: a real HTTP server that speaks the part of its protocol that downloads use.

    with HubServer({"Lightricks/LTX-Video": lightricks_ltx_video()}) as hub:
        subprocess.run([...], env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": "/tmp/empty"})
        hub.fetched()  # {"vae/config.json": 1075, ...}: bytes of content sent, by file

Written after the requests that huggingface_hub 2.4 and diffusers 0.42 make: the repository's info and tree, `resolve`
with HEAD and GET, a redirect within the Hub for small files and to another host for those in LFS, and byte ranges. What
is behind Xet storage is left out; without its headers huggingface_hub downloads over plain HTTP.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import pytest
from huggingface_hub import constants

ROOT = Path(__file__).resolve().parent.parent
MINIATURE = ROOT / "data" / "miniatures" / "ltx_video"
IN_LFS = (".safetensors", ".bin", ".model", ".gif", ".mp4", ".png", ".jpg")
REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = {
    "info": re.compile(rf"/api/models/{REPO}(?:/revision/(?P<revision>[^/]+))?"),
    "tree": re.compile(rf"/api/models/{REPO}/tree/(?P<revision>[^/]+)/?"),
    "file": re.compile(rf"/api/resolve-cache/models/{REPO}/(?P<revision>[^/]+)/(?P<file>.+)"),
    "resolve": re.compile(rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)"),
    "lfs": re.compile(rf"/lfs/{REPO}/(?P<revision>[^/]+)/(?P<file>.+)"),
}

BOTH_ENDS = re.compile(r"bytes=\d+-\d+")

# A file: its content, or the size of a decoy, which is listed like any other and whose content must not be requested.
Files = Mapping[str, "bytes | int"]


def folder_files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path in it."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def lightricks_ltx_video() -> dict[str, bytes | int]:
    """The LTX-Video repository with the miniature as its weights, and around it what must not be downloaded."""
    decoys = {
        ".gitattributes": 1_519,
        "README.md": 21_000,
        "ltx-video-2b-v0.9.license.txt": 12_000,
        "ltx-video-2b-v0.9.safetensors": 9_370_000_000,
        "ltx-video-2b-v0.9.5.safetensors": 6_340_000_000,
        "ltxv-13b-0.9.8-dev.safetensors": 28_600_000_000,
        "media/ltx-video_example_00001.gif": 8_000_000,
        "text_encoder/pytorch_model.bin": 19_000_000_000,
        "transformer/diffusion_pytorch_model.bin": 7_690_000_000,
        "transformer/diffusion_pytorch_model.fp16.safetensors": 3_850_000_000,
        "vae/diffusion_pytorch_model.fp32.safetensors": 1_680_000_000,
        "vae/unused/config.json": 1_000,
    }
    own = {name: content for name, content in folder_files(MINIATURE).items() if "/" in name or name[:5] == "model"}
    return own | decoys


@dataclass(frozen=True)
class Request:
    """One request, and its answer: status and bytes of body. `kind` is a key of `ROUTES`."""

    method: str
    kind: str
    repo: str
    file: str
    revision: str
    range: str
    status: int
    sent: int
    token: str


class HubServer:
    """The server. It runs between `with HubServer(...) as hub:` and the block's end, on a free port.

    Attributes, all of which may be set while it runs:
        repos: Files by repository id.
        revisions: Commit by branch or tag; the commits themselves are known too. All hold the same files.
        gated: Repositories whose files need a token in `accepted`; anyone may list them, as on the Hub.
        accepted: Tokens of users who have accepted the licence.
        drop_after: By file: the next download of it breaks off after so many bytes. Each happens once.
        always: (status, X-Error-Code or "") to answer everything with, or `None`.
        delay: Seconds that every answer takes.
        requests: Every `Request` so far.
    """

    def __init__(self, repos: Mapping[str, Files]):
        self.repos = dict(repos)
        self.revisions = {name: hashlib.sha1(name.encode()).hexdigest() for name in ("main", "v0.9")}
        self.gated: set[str] = set()
        self.accepted: set[str] = set()
        self.drop_after: dict[str, int] = {}
        self.always: tuple[int, str] | None = None
        self.delay = 0.0
        self.requests: list[Request] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """The value for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def other_host(self) -> str:
        """The same server under another host's name, as the Hub's storage is: no token may go there."""
        return f"http://localhost:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Goes down for good; connections are refused from now on."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def fetched(self, since: int = 0, repo: str = "") -> Counter[str]:
        """Bytes of content sent by file, from request number `since` on: files asked for as a whole, or resumed."""
        return self._sent(since, repo, peeked=False)

    def peeked(self, since: int = 0, repo: str = "") -> Counter[str]:
        """Bytes sent by file for requests with both ends given, as a reader of headers makes them."""
        return self._sent(since, repo, peeked=True)

    def _sent(self, since: int, repo: str, peeked: bool) -> Counter[str]:
        found: Counter[str] = Counter()
        for request in self.requests[since:]:
            content = request.method == "GET" and request.kind in ("file", "lfs") and request.status != 416
            if content and request.repo.startswith(repo) and peeked == bool(BOTH_ENDS.fullmatch(request.range)):
                found[request.file] += request.sent
        return found


def environment(hub: HubServer, home: Path, **more: str) -> dict[str, str]:
    """The environment of a process that uses `hub`, downloads to `home`, and sees no other setting of the Hub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    kept |= {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost", "PYTHONPATH": str(ROOT)}
    return kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home)} | more


def use_here(hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process's huggingface_hub use `hub` and download to `home`, which is empty, until the test ends."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def python(code: str, env: Mapping[str, str]) -> str:
    """What `code` prints in a new process, which must succeed."""
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *arguments: object):
        self.connections: list[socket.socket] = []
        super().__init__(*arguments)

    def get_request(self) -> tuple[socket.socket, object]:
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address

    def server_close(self) -> None:
        """Also hangs up on clients that keep their connection for another request."""
        super().server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):  # the client was first
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up while it is answered is no error of ours; anything else is shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests; `hub` is set by the server."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *arguments: object) -> None:
        """Says nothing on the terminal: `hub.requests` has it all."""

    def _answer(self) -> None:
        time.sleep(self.hub.delay)
        path = urlsplit(self.path).path
        found = {kind: match for kind, route in ROUTES.items() if (match := route.fullmatch(path))}
        self.kind, match = next(iter(found.items()), ("unknown", None))
        parts = {name: unquote(value or "") for name, value in match.groupdict().items()} if match else {}
        self.repo, self.file = parts.get("repo", ""), parts.get("file", "")
        self.revision = parts.get("revision") or "main"
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.hub.always:
            return self._refuse(*self.hub.always)
        if match is None:
            return self._refuse(404, "")
        if self.repo not in self.hub.repos:
            return self._refuse(404 if self.token else 401, "RepoNotFound")
        commits = self.hub.revisions | {commit: commit for commit in self.hub.revisions.values()}
        if self.revision not in commits:
            return self._refuse(404, "RevisionNotFound")
        self.files, self.commit = self.hub.repos[self.repo], commits[self.revision]
        getattr(self, f"_{self.kind}")()

    def _info(self) -> None:
        siblings = [{"rfilename": name} for name in self.files]
        if "blobs=" in self.path:
            siblings = [
                {"rfilename": e["path"], "blobId": e["oid"], "size": e["size"]}
                | ({"lfs": {"sha256": e["lfs"]["oid"], "size": e["size"], "pointerSize": 134}} if "lfs" in e else {})
                for e in map(self._entry, self.files)
            ]
        gated = "auto" if self.repo in self.hub.gated else False
        self._json({"id": self.repo, "modelId": self.repo, "sha": self.commit, "private": False, "gated": gated,
                    "tags": ["diffusers"], "library_name": "diffusers", "siblings": siblings})  # fmt: skip

    def _tree(self) -> None:
        folders = {name.rpartition("/")[0] for name in self.files} - {""}
        self._json([{"type": "directory", "oid": _sha1(name.encode()), "size": 0, "path": name} for name in folders]
                   + [self._entry(name) for name in self.files])  # fmt: skip

    def _entry(self, name: str) -> dict[str, object]:
        content = self.files[name]
        size = content if isinstance(content, int) else len(content)
        entry: dict[str, object] = {"type": "file", "oid": _blob_id(content), "size": size, "path": name}
        if name.endswith(IN_LFS):
            entry["lfs"] = {"oid": _sha256(content), "size": size, "pointerSize": 134}
        return entry

    def _resolve(self) -> None:
        """A file's address: the Hub itself for small files, another host for those in LFS."""
        if self.file not in self.files:
            return self._refuse(404, "EntryNotFound")
        if self.repo in self.hub.gated and self.token not in self.hub.accepted:
            return self._refuse(403 if self.token else 401, "GatedRepo")
        place, content = f"{self.repo}/{self.commit}/{quote(self.file)}", self.files[self.file]
        headers = {"X-Repo-Commit": self.commit, "Content-Length": "0"}
        if self.file.endswith(IN_LFS):
            entry = self._entry(self.file)
            headers |= {"X-Linked-Size": str(entry["size"]), "X-Linked-ETag": f'"{_sha256(content)}"'}
            self._send(302, headers | {"Location": f"{self.hub.other_host}/lfs/{place}"})
        else:
            headers |= {"ETag": f'"{_blob_id(content)}"'}
            self._send(307, headers | {"Location": f"/api/resolve-cache/models/{place}"})

    def _file(self) -> None:
        self._content({"X-Repo-Commit": self.commit, "ETag": f'"{_blob_id(self.files[self.file])}"'})

    def _lfs(self) -> None:
        self._content({"ETag": f'"{_sha256(self.files[self.file])}"'})

    def _content(self, headers: dict[str, str]) -> None:
        """The file itself or a part of it, or only its beginning where the connection is to break off."""
        content = self.files[self.file]
        if isinstance(content, int):  # a decoy has no content
            if self.command == "HEAD":
                return self._send(200, headers | {"Content-Length": str(content)})
            return self._refuse(410, "")
        headers |= {"Accept-Ranges": "bytes"}
        status, body = 200, content
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
            if first >= len(content):
                return self._send(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
            status, body = 206, content[first : last + 1]
            headers |= {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        stop = self.hub.drop_after.pop(self.file, None) if self.command == "GET" and not asked else None
        self._send(status, headers | {"Content-Length": str(len(body))}, body[:stop])
        self.close_connection |= stop is not None

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        headers = {"Content-Type": "application/json", "X-Repo-Commit": self.commit}
        self._send(200, headers | {"Content-Length": str(len(body))}, body)

    def _refuse(self, status: int, code: str) -> None:
        body = json.dumps({"error": code or "refused"}).encode()
        headers = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        self._send(status, headers | {"Content-Type": "application/json", "Content-Length": str(len(body))}, body)

    def _send(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        body = b"" if self.command == "HEAD" else body
        range_ = self.headers.get("Range", "")
        # Before the answer: who has got it may look at the list at once.
        self.hub.requests.append(
            Request(
                self.command, self.kind, self.repo, self.file, self.revision, range_, status, len(body), self.token
            )
        )
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def _blob_id(content: bytes | int) -> str:
    """The id that git gives a file's content; a decoy's is made up from its size."""
    data = str(content).encode() if isinstance(content, int) else content
    return _sha1(b"blob %d\0" % len(data) + data)


def _sha256(content: bytes | int) -> str:
    data = str(content).encode() if isinstance(content, int) else content
    return hashlib.sha256(data).hexdigest()
