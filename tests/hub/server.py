"""A loopback server that speaks as much of the hub's protocol as reading and pushing take.

Read from huggingface_hub 2.4's own requests: /api/models/REPO/revision/REV, HEAD and GET of resolve (regular files, LFS
behind a redirect, ranges), repos/create, preupload, LFS batch and PUT, commit. Faults are set by repository or path.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
LFS = (".safetensors", ".gguf", ".bin", ".parquet")


def git_hash(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub:
    """Repositories (kind, "USER/NAME") -> {file: bytes}, who may read them, and what goes wrong."""

    def __init__(self):
        self.files = {}
        self.private, self.gated = set(), set()
        self.tokens = {"hf_reader"}
        self.writers = {"hf_writer"}
        self.public_only = set()  # repositories that exist as public
        self.status = {}  # repository -> (status, headers) instead of every answer
        self.cut = {}  # file -> bytes to send of it before the connection breaks, once for each entry of the list
        self.spoilt = set()  # files whose bytes arrive changed
        self.short = set()  # files of which the first half is sent as if it were the whole
        self.log = []  # (method, path, range) of every request
        self.commits = []  # (repository, revision, header, {file: bytes})
        self.blobs = {}  # what LFS uploads brought, by SHA-256
        self.branches = []
        outer = self

        class Handler(_Handler):
            hub = outer

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.cdn = f"http://localhost:{self.server.server_port}"  # another host, as the hub's is
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def gets(self, name):
        """The requests for the bytes of a file."""
        return [entry for entry in self.log if entry[0] == "GET" and entry[1].endswith(name)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments):
        pass

    def answer(self, status, value=None, headers=()):
        body = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for key, text in dict(headers).items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, status, code, message):
        self.answer(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    @property
    def token(self):
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def admitted(self, kind, repo):
        """Whether the request may read the repository; the refusal is sent otherwise, as the hub words it."""
        hub = self.hub
        if repo in hub.status:
            status, headers = hub.status[repo]
            self.answer(status, {"error": "fault"}, headers)
        elif self.token and self.token not in hub.tokens | hub.writers:
            self.answer(
                401,
                {"error": "Invalid credentials"},
                {"X-Error-Message": "Invalid credentials in Authorization header"},
            )
        elif (kind, repo) not in hub.files or (repo in hub.private and not self.token):
            if self.token:
                self.fail(404, "RepoNotFound", "Repository not found")
            else:
                self.answer(401, {"error": "Invalid username or password."})
        elif repo in hub.gated:
            self.fail(403, "GatedRepo", f"Access to {repo} is restricted")
        else:
            return True
        return False

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.log.append((self.command, path, self.headers.get("Range")))
        for pattern, act in (
            (r"/api/(model|dataset)s/([^/]+/[^/]+)/revision/(.+)", self.info),
            (r"/api/(model|dataset)s/([^/]+/[^/]+)", self.info),
            (r"/api/(model|dataset)s/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", self.tree),
            (r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.resolve),
            (r"/cdn/(model|dataset)/([^/]+/[^/]+)/(.+)", self.send),
        ):
            found = re.fullmatch(pattern, path)
            if found:
                act(*found.groups())
                return
        self.fail(404, "NotFound", f"no such route: {path}")

    def known(self, revision):
        if revision in ("main", "v1", COMMIT):
            return True
        self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return False

    def info(self, kind, repo, revision="main"):
        if self.admitted(kind, repo) and self.known(revision):
            files = self.hub.files[kind, repo]
            siblings = [self.sibling(name, data) for name, data in files.items()]
            private = repo in self.hub.private
            self.answer(200, {"id": repo, "sha": COMMIT, "private": private, "siblings": siblings, "tags": []})

    def sibling(self, name, data):
        lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        entry = {"rfilename": name, "size": len(data), "blobId": git_hash(data)}
        return entry | ({"lfs": lfs} if name.endswith(LFS) else {})

    def tree(self, kind, repo, revision, folder=None):
        if not (self.admitted(kind, repo) and self.known(revision)):
            return
        files = self.hub.files[kind, repo]
        if folder and not any(name.startswith(f"{folder}/") for name in files):
            self.fail(404, "EntryNotFound", f"{folder} does not exist on {revision}")
            return
        self.answer(200, [{"type": "file", "path": n, "size": len(d), "oid": git_hash(d)} for n, d in files.items()])

    def resolve(self, prefix, repo, revision, name):
        kind = "dataset" if prefix else "model"
        if not (self.admitted(kind, repo) and self.known(revision)):
            return
        files = self.hub.files[kind, repo]
        if name not in files:
            self.answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        elif name.endswith(LFS):
            digest = hashlib.sha256(files[name]).hexdigest()
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": len(files[name]), "X-Repo-Commit": COMMIT}
            self.answer(302, None, {"Location": f"{self.hub.cdn}/cdn/{kind}/{repo}/{name}", **linked})
        else:
            self.send(kind, repo, name)

    def send(self, kind, repo, name):
        data = self.hub.files[kind, repo][name]
        etag = git_hash(data)
        if name in self.hub.spoilt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if name in self.hub.short and self.command == "GET":
            data = data[: len(data) // 2]
        start = int(re.fullmatch(r"bytes=(\d+)-.*", self.headers["Range"])[1]) if self.headers.get("Range") else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.cut.get(name):
            self.wfile.write(data[start : self.hub.cut[name].pop(0)])
            self.wfile.flush()
            self.connection.shutdown(2)
            self.close_connection = True
            return
        self.wfile.write(data[start:])

    # pushing

    def do_PUT(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.blobs[hashlib.sha256(data).hexdigest()] = data
        self.answer(200, {})

    def do_POST(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.log.append(("POST", path, None))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        repo = "/".join(path.removeprefix("/api/models/").split("/")[:2]).removesuffix(".git").lstrip("/")
        if self.token not in self.hub.writers:
            if self.token in self.hub.tokens:
                self.answer(403, {"error": "no write"}, {"X-Error-Message": "You don't have the rights to write"})
            else:
                self.answer(401, {"error": "no"}, {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LFS) else "regular"} for f in files]
            self.answer(200, {"files": [{**mode, "shouldIgnore": False, "oid": None} for mode in modes]})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            links = [{**o, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{o['oid']}"}}} for o in objects]
            self.answer(200, {"transfer": "basic", "objects": links})
        elif "/commit/" in path:
            self.commit(repo, path.rsplit("/", 1)[1], [json.loads(line) for line in body.splitlines()])
        elif "/branch/" in path:
            self.hub.branches.append((repo, path.split("/branch/")[1]))
            self.answer(200, {})
        else:
            self.answer(200, {})  # tags and validation of a card

    def create(self, wanted):
        repo = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
        if ("model", repo) in self.hub.files:
            self.answer(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{repo}"})
            return
        self.hub.files["model", repo] = {}
        if wanted.get("private") or wanted.get("visibility") == "private":
            self.hub.private.add(repo)
        self.answer(200, {"url": f"{self.hub.url}/{repo}", "id": repo})

    def commit(self, repo, revision, lines):
        sent = {}
        for line in lines[1:]:
            value = line["value"]
            whole = line["key"] == "file"
            sent[value["path"]] = base64.b64decode(value["content"]) if whole else self.hub.blobs[value["oid"]]
        self.hub.commits.append((repo, revision, lines[0]["value"], sent))
        self.hub.files["model", repo].update(sent)
        self.answer(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT})
