"""A small Hub on loopback: enough of its HTTP API for the real client, and faults on demand.

    with Hub() as hub:
        hub.fail("POST .*/commit/", status=500, times=2)
        ...                                 # a client whose HF_ENDPOINT is hub.url
        hub.repos["owner/name"].commits[-1].files["README.md"]
        hub.repos["spaces/owner/name"]      # likewise, of a Space

Large files live on `localhost`, another host than `127.0.0.1` to the client, as the real Hub's lie
on a CDN: the token must not travel there.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import yaml

TOKENS = {"hf_owner": ("owner", True), "hf_reader": ("owner", False), "hf_other": ("other", True)}
NAME = r"(?P<repo>(?:spaces/)?[\w.-]+/[\w.-]+)"
LARGE = (".safetensors", ".onnx", ".gz")  # kept as large files, whatever their size
MAX_REGULAR = 10_000_000  # bytes; git keeps no larger file


@dataclass
class Commit:
    """One state of a repository."""

    oid: str
    message: str
    files: dict[str, bytes]
    lfs: set[str]  # paths of large files


@dataclass
class Repo:
    """A repository: its commits, oldest first, and its tags."""

    private: bool = False
    writers: set[str] = field(default_factory=set)
    commits: list[Commit] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def find(self, revision: str) -> Commit | None:
        """Return the commit of a branch, tag, full or shortened commit id."""
        if revision == "main":
            return self.commits[-1]
        wanted = self.tags.get(revision, revision)
        return next((c for c in self.commits if c.oid.startswith(wanted)), None)


@dataclass
class Fault:
    """What goes wrong with requests whose `METHOD path` matches."""

    pattern: str
    times: int | None = None  # None: for ever
    status: int = 0  # answer this instead
    headers: dict[str, str] = field(default_factory=dict)
    nonsense: bool = False  # answer 200 and a page of HTML
    stall: bool = False  # answer nothing until the server ends
    lose: bool = False  # do it, but cut the connection before the answer
    cut: int | None = None  # cut the connection after so many bytes of the body
    flip: bool = False  # change a byte of the body


@dataclass
class Reply:
    """An answer: status, headers, body."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def as_json(content: Any, status: int = 200) -> Reply:
    """Answer with JSON."""
    return Reply(status, json.dumps(content).encode(), {"Content-Type": "application/json"})


def error(status: int, code: str = "", message: str = "") -> Reply:
    """Answer with the Hub's error headers."""
    reply = as_json({"error": message or code}, status)
    reply.headers |= {"X-Error-Message": message or code} | ({"X-Error-Code": code} if code else {})
    return reply


def git_hash(content: bytes) -> str:
    """Return the id under which git keeps a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub:
    """The server and all that it holds."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}  # by SHA-256
        self.faults: list[Fault] = []
        self.log: list[tuple[str, int]] = []  # "METHOD path", status
        self.tokens_on_cdn: list[str] = []
        self.after: dict[str, Callable[[], None]] = {}  # pattern → done once, after the answer
        self.ended = threading.Event()
        self.lock = threading.RLock()

    def __enter__(self) -> Self:
        handler = type("Handler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self.cdn = f"http://localhost:{self.port}/cdn"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Go off the air: no more connections, open ones end."""
        if not self.ended.is_set():
            self.ended.set()
            self.server.shutdown()
            self.server.server_close()

    def fail(self, pattern: str, **how: Any) -> None:
        """Let requests that match fail as `Fault` says."""
        self.faults.append(Fault(pattern, **how))

    def heal(self) -> None:
        """Let nothing fail any more."""
        self.faults.clear()

    def requests(self, pattern: str) -> list[str]:
        """Return the requests so far that match."""
        return [line for line, _ in self.log if re.search(pattern, line)]

    def create(self, name: str, *, private: bool = False, writers: tuple[str, ...] = ()) -> Repo:
        """Make a repository with the first commit that the Hub gives it."""
        repo = Repo(private, {name.split("/")[-2], *writers})
        self.repos[name] = repo
        self.commit(repo, "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return repo

    def commit(
        self, repo: Repo, message: str, files: dict[str, bytes], lfs: tuple[str, ...] = ()
    ) -> Commit:
        """Add a commit that adds or replaces files."""
        last = repo.commits[-1] if repo.commits else Commit("", "", {}, set())
        everything = last.files | files
        text = f"{last.oid}{message}{sorted((k, git_hash(v)) for k, v in everything.items())}"
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.large |= {hashlib.sha256(files[k]).hexdigest(): files[k] for k in lfs}
        repo.commits.append(Commit(oid, message, everything, last.lfs | set(lfs)))
        return repo.commits[-1]

    def fault_for(self, line: str) -> Fault | None:
        """Return the first fault that hits this request, and count it."""
        with self.lock:
            for fault in self.faults:
                if fault.times != 0 and re.search(fault.pattern, line):
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None


class Handler(BaseHTTPRequestHandler):
    """Speaks HTTP/1.1 for a Hub."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body leave together, else each answer takes 40 ms
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def handle_any(self) -> None:
        """Read one request, answer it, or fail as told."""
        path = unquote(urlsplit(self.path).path)
        line = f"{self.command} {path}"
        body = self.read_body()
        fault = self.hub.fault_for(line) or Fault("")
        if self.hub.ended.is_set():
            self.close_connection = True
            return
        if fault.stall:
            self.hub.log.append((line, 0))
            self.hub.ended.wait(60)
            self.close_connection = True
            return
        if fault.status:
            reply = error(fault.status, message="told to fail")
            reply.headers |= fault.headers
        elif fault.nonsense:
            reply = Reply(200, b"<html>Welcome to the hotel's network!</html>")
        else:
            with self.hub.lock:
                reply = self.answer(path, body)
        if fault.lose:
            self.hub.log.append((line, 0))
            self.close_connection = True
            return
        self.send(reply, fault, line)
        for pattern in [p for p in self.hub.after if re.search(p, line)]:
            self.hub.after.pop(pattern)()

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

    def read_body(self) -> bytes:
        """Read a body of known length or in chunks."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send(self, reply: Reply, fault: Fault, line: str) -> None:
        """Send an answer, the range of it that was asked for, or as much as the fault leaves."""
        status, body = reply.status, reply.body
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        headers = {"Content-Length": str(len(body)), **reply.headers}
        if wanted and status == 200:
            first, last = int(wanted[1]), int(wanted[2] or len(body) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            status, body = 206, body[first : last + 1]
            headers["Content-Length"] = str(len(body))
        if fault.flip and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.hub.log.append((line, status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: fault.cut])
        if fault.cut is not None:
            self.close_connection = True

    def answer(self, path: str, body: bytes) -> Reply:
        """Find who answers this path."""
        path = re.sub("^/api/spaces/", "/api/models/spaces/", path)
        for method, pattern, do in ROUTES:
            found = re.fullmatch(pattern.replace("NAME", NAME), path)
            if self.command in method and found:
                return do(self, body, **found.groupdict())
        return error(404, message=f"no such address {path}")

    @property
    def user(self) -> tuple[str, bool] | None:
        """Who asks, and whether the token may write; None without a known token."""
        return TOKENS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def open_repo(self, name: str, *, write: bool = False) -> Repo | Reply:
        """Return a repository that the asker may read or write, or the error instead."""
        if self.user is None and "Authorization" in self.headers:
            return error(401, message="Invalid credentials in Authorization header")
        repo = self.hub.repos.get(name)
        who, may_write = self.user or ("", False)
        if repo is None or (repo.private and who not in repo.writers):
            return error(404 if self.user else 401, "RepoNotFound", "Repository not found")
        if write and not (may_write and who in repo.writers):
            return error(403, message="You don't have the required permissions")
        return repo

    # -- who and what

    def whoami(self, _body: bytes) -> Reply:
        """GET /api/whoami-v2"""
        if self.user is None:
            return error(401, message="Invalid credentials in Authorization header")
        role = "write" if self.user[1] else "read"
        auth = {"accessToken": {"displayName": "t", "role": role}}
        return as_json({"type": "user", "name": self.user[0], "orgs": [], "auth": auth})

    def create(self, body: bytes) -> Reply:
        """POST /api/repos/create"""
        asked = json.loads(body)
        if self.user is None:
            return error(401, message="Invalid credentials in Authorization header")
        who, may_write = self.user
        name = f"{asked.get('organization') or who}/{asked['name']}"
        if not may_write or not name.startswith(who + "/"):
            return error(403, message="You don't have the rights to create a model here")
        is_space = asked.get("type") == "space"
        if is_space and asked.get("sdk") not in SDKS:
            return error(400, message="a Space needs an SDK")
        key = f"spaces/{name}" if is_space else name
        if key in self.hub.repos:
            return as_json({"error": "You already created it", "url": f"{self.hub.url}/{key}"}, 409)
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.create(key, private=bool(private))
        return as_json({"url": f"{self.hub.url}/{key}", "name": name})

    def auth_check(self, _body: bytes, repo: str) -> Reply:
        """GET /api/models/NAME/auth-check/write"""
        found = self.open_repo(repo, write=True)
        return found if isinstance(found, Reply) else Reply(200, b"OK")

    def info(self, _body: bytes, repo: str, revision: str = "main") -> Reply:
        """GET /api/models/NAME[/revision/REVISION]"""
        found = self.open_repo(repo)
        if isinstance(found, Reply):
            return found
        commit = found.find(revision)
        if commit is None:
            return error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = [{"rfilename": path} for path in commit.files]
        about = {"_id": "0", "id": repo, "modelId": repo, "sha": commit.oid, "tags": []}
        return as_json({**about, "private": found.private, "siblings": files})

    def refs(self, _body: bytes, repo: str) -> Reply:
        """GET /api/models/NAME/refs"""
        found = self.open_repo(repo)
        if isinstance(found, Reply):
            return found
        head = {"name": "main", "ref": "refs/heads/main", "targetCommit": found.commits[-1].oid}
        tags = [
            {"name": k, "ref": f"refs/tags/{k}", "targetCommit": v} for k, v in found.tags.items()
        ]
        return as_json({"branches": [head], "converts": [], "tags": tags})

    def list_commits(self, _body: bytes, repo: str, revision: str) -> Reply:
        """GET /api/models/NAME/commits/REVISION, the newest 50"""
        found = self.open_repo(repo)
        if isinstance(found, Reply):
            return found
        line = found.commits[: found.commits.index(found.find(revision)) + 1]
        titles = [{"id": c.oid, "title": c.message, "authors": []} for c in reversed(line)]
        return as_json(titles[:50])

    # -- pushing

    def validate(self, body: bytes) -> Reply:
        """POST /api/validate-yaml"""
        asked = json.loads(body)
        check = space_errors if asked.get("repoType") == "space" else card_errors
        errors = [{"message": m} for m in check(asked["content"])]
        return as_json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, body: bytes, repo: str, revision: str) -> Reply:
        """POST /api/models/NAME/preupload/REVISION"""
        found = self.open_repo(repo, write=True)
        if isinstance(found, Reply):
            return found
        commit = found.find(revision)
        files = []
        for file in json.loads(body)["files"]:
            path = file["path"]
            binary = b"\0" in base64.b64decode(file["sample"])
            large = path.endswith(LARGE) or file["size"] > (100_000 if binary else MAX_REGULAR)
            answer = {"path": path, "uploadMode": "lfs" if large else "regular"}
            if path in commit.files:
                old = commit.files[path]
                answer["oid"] = hashlib.sha256(old).hexdigest() if large else git_hash(old)
            files.append({**answer, "shouldIgnore": False})
        return as_json({"files": files, "commitOid": commit.oid})

    def batch(self, body: bytes, repo: str) -> Reply:
        """POST /NAME.git/info/lfs/objects/batch"""
        found = self.open_repo(repo, write=True)
        if isinstance(found, Reply):
            return found
        objects = []
        for item in json.loads(body)["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.large:
                upload = {"href": f"{self.hub.cdn}/{item['oid']}", "header": {}}
                verify = {"href": f"{self.hub.url}/{repo}.git/info/lfs/verify"}
                answer["actions"] = {"upload": upload, "verify": verify}
            objects.append(answer)
        return as_json({"transfer": "basic", "objects": objects})

    def put_large(self, body: bytes, oid: str) -> Reply:
        """PUT /cdn/OID"""
        self.note_token()
        if hashlib.sha256(body).hexdigest() != oid:
            return error(400, message="the bytes do not have this SHA-256")
        self.hub.large[oid] = body
        return Reply()

    def verify(self, body: bytes, repo: str) -> Reply:
        """POST /NAME.git/info/lfs/verify"""
        asked = json.loads(body)
        held = self.hub.large.get(asked["oid"])
        fits = held is not None and len(held) == asked["size"]
        return as_json({}) if fits else error(404, message="no such object")

    def commit(self, body: bytes, repo: str, revision: str) -> Reply:
        """POST /api/models/NAME/commit/REVISION"""
        found = self.open_repo(repo, write=True)
        if isinstance(found, Reply):
            return found
        header, *items = (json.loads(line) for line in body.splitlines())
        files, large = {}, []
        for item in items:
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif value["oid"] in self.hub.large:
                files[value["path"]] = self.hub.large[value["oid"]]
                large.append(value["path"])
            else:
                return error(400, message="an LFS pointer pointed to a file that does not exist")
        if too_large := [k for k, v in files.items() if k not in large and len(v) > MAX_REGULAR]:
            return error(400, message=f"{too_large[0]} is too large for git, it needs LFS")
        made = self.hub.commit(found, header["value"]["summary"], files, tuple(large))
        url = f"{self.hub.url}/{repo}/commit/{made.oid}"
        return as_json({"success": True, "commitOid": made.oid, "commitUrl": url})

    def tag(self, body: bytes, repo: str, revision: str) -> Reply:
        """POST /api/models/NAME/tag/REVISION"""
        found = self.open_repo(repo, write=True)
        if isinstance(found, Reply):
            return found
        name = json.loads(body)["tag"]
        if name in found.tags:
            return error(409, message=f"Tag {name} already exists")
        found.tags[name] = found.find(revision).oid
        return as_json({})

    # -- pulling

    def resolve(self, _body: bytes, repo: str, revision: str, path: str) -> Reply:
        """HEAD or GET /NAME/resolve/REVISION/PATH"""
        found = self.open_repo(repo)
        if isinstance(found, Reply):
            return found
        commit = found.find(revision)
        if commit is None:
            return error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        content = commit.files.get(path)
        if content is None:
            reply = error(404, "EntryNotFound", "Entry not found")
            reply.headers |= headers
            return reply
        if path not in commit.lfs:
            return Reply(200, content, {**headers, "ETag": f'"{git_hash(content)}"'})
        oid = hashlib.sha256(content).hexdigest()
        linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        return Reply(302, b"", {**headers, **linked, "Location": f"{self.hub.cdn}/{oid}"})

    def get_large(self, _body: bytes, oid: str) -> Reply:
        """GET /cdn/OID"""
        self.note_token()
        return Reply(200, self.hub.large[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def note_token(self) -> None:
        """Remember a token that should not have come here."""
        if "Authorization" in self.headers:
            self.hub.tokens_on_cdn.append(self.headers["Authorization"])


ROUTES: list[tuple[str, str, Callable[..., Reply]]] = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("GET", "/api/models/NAME/auth-check/write", Handler.auth_check),
    ("GET", "/api/models/NAME", Handler.info),
    ("GET", "/api/models/NAME/revision/(?P<revision>[^/]+)", Handler.info),
    ("GET", "/api/models/NAME/refs", Handler.refs),
    ("GET", "/api/models/NAME/commits/(?P<revision>[^/]+)", Handler.list_commits),
    ("POST", "/api/models/NAME/preupload/(?P<revision>[^/]+)", Handler.preupload),
    ("POST", "/api/models/NAME/commit/(?P<revision>[^/]+)", Handler.commit),
    ("POST", "/api/models/NAME/tag/(?P<revision>[^/]+)", Handler.tag),
    ("POST", r"/NAME\.git/info/lfs/objects/batch", Handler.batch),
    ("POST", r"/NAME\.git/info/lfs/verify", Handler.verify),
    ("PUT", "/cdn/(?P<oid>[0-9a-f]{64})", Handler.put_large),
    ("GET HEAD", "/cdn/(?P<oid>[0-9a-f]{64})", Handler.get_large),
    ("GET HEAD", "/NAME/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
]

SDKS = ("gradio", "docker", "static")
COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
# Headers that a Space may send, and what they may say.
HEADERS = {
    "cross-origin-embedder-policy": ("unsafe-none", "require-corp", "credentialless"),
    "cross-origin-opener-policy": ("same-origin", "same-origin-allow-popups", "unsafe-none"),
    "cross-origin-resource-policy": ("same-site", "same-origin", "cross-origin"),
}
TEXTS = ("license", "library_name", "pipeline_tag")
LISTS = ("tags", "datasets")


def read_front(card: str) -> dict[str, Any] | None:
    """Return the metadata at the top of a README, if there is some."""
    front = re.match(r"---\r?\n(.*?)\r?\n---\r?\n", card, re.DOTALL)
    return yaml.safe_load(front[1]) if front else None


def space_errors(card: str) -> list[str]:
    """Check a Space's metadata as the Hub documents it; return what is wrong."""
    data = read_front(card)
    if data is None:
        return ["no metadata"]
    wrong = [] if data.get("sdk") in SDKS else [f"sdk must be one of {', '.join(SDKS)}"]
    for key in ("colorFrom", "colorTo"):
        wrong += [] if data.get(key, "red") in COLOURS else [f"{key} must be one of {COLOURS}"]
    for key, most in (("short_description", 60), ("emoji", 2), ("app_file", 200), ("title", 100)):
        text = data.get(key, "")
        if not isinstance(text, str) or len(text) > most:
            wrong.append(f"{key} must be a text of at most {most} characters")
    for name, value in data.get("custom_headers", {}).items():
        if value not in HEADERS.get(name, ()):
            wrong.append(f"custom_headers: {name} must not be {value}")
    return wrong


def card_errors(card: str) -> list[str]:
    """Check a model card's metadata as the Hub documents it; return what is wrong."""
    data = read_front(card)
    if data is None:
        return ["no metadata"]
    wrong = [f"{k} must be a text" for k in TEXTS if not isinstance(data.get(k, ""), str)]
    for key in LISTS:
        if not all(isinstance(v, str) for v in data.get(key, [])):
            wrong.append(f"{key} must be a list of texts")
    for name in data.get("datasets", []):
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
            wrong.append(f"datasets: {name} is no id")
    for model in data.get("model-index", []):
        wrong += model_index_errors(model)
    return wrong


def model_index_errors(model: dict[str, Any]) -> list[str]:
    """Check one entry of a card's model-index."""
    wrong = [] if isinstance(model.get("name"), str) else ["model-index needs a name"]
    for result in model["results"]:
        needed = [result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"]]
        needed += [metric["type"] for metric in result["metrics"]]
        if not all(isinstance(v, str) and v for v in needed):
            wrong.append("model-index lacks a type or a name")
        if not all(isinstance(m["value"], int | float) for m in result["metrics"]):
            wrong.append("model-index holds a value that is no number")
    return wrong
