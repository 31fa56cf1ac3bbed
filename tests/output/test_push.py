"""growth push, with huggingface_hub's own client, against a hub on this machine."""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import growth
from growth.errors import CheckpointError
from growth.output.push import push

COMMIT = "a" * 40


class Hub(ThreadingHTTPServer):
    """A hub that takes commits, and remembers the repository and the files of each."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.created, self.files = [], {}


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.answer(self.answers(body))

    def do_GET(self):
        self.answer({})

    def answers(self, body):
        hub = self.server
        if self.path == "/api/repos/create":
            hub.created.append(json.loads(body))
            return {"url": f"{hub.url}/me/large", "name": "me/large"}
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            return {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return {"commitUrl": f"{hub.url}/me/large/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
        return {}

    def answer(self, content):
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def hub():
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def grown(phi_mini, tmp_path_factory):
    folder = tmp_path_factory.mktemp("push") / "grown"
    growth.grow("double-depth", phi_mini, folder)
    return folder


def test_a_grown_folder_is_uploaded_as_it_is(hub, grown, tmp_path):
    folder = shutil.copytree(grown, tmp_path / "grown")
    (folder / "notes.txt").write_text("mine")
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_any", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "growth", "push", folder, "me/large", "--private", "--json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["url"], told["commit"]) == (f"{hub.url}/me/large", COMMIT)
    (created,) = hub.created
    assert (created["organization"], created["name"]) == ("me", "large")
    assert "private" in json.dumps(created)  # a flag or a word, by the version of the client
    assert hub.files == {path.name: path.read_bytes() for path in grown.iterdir()}
    assert set(told["files"]) == hub.files.keys()


def test_a_hub_that_cannot_be_reached_is_an_error_with_a_remedy(grown):
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "growth", "push", str(grown), "me/large"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 2
    assert "hf auth login" in done.stderr


def flip_last_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("config.json", lambda path: path.write_text(path.read_text() + " ")),
        ("growth.json", lambda path: path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))),
        ("growth.json", lambda path: path.unlink()),
        ("README.md", lambda path: path.unlink()),
        ("model.safetensors", flip_last_bit),
    ],
    ids=["a changed file", "a changed growth.json", "no growth.json", "a missing file", "a changed weight"],
)
def test_what_is_not_as_it_was_grown_is_refused(grown, tmp_path, name, what):
    folder = shutil.copytree(grown, tmp_path / "grown")
    what(folder / name)
    with pytest.raises(CheckpointError, match=f"{name}.*hf upload REPOSITORY"):
        push(folder, "me/large")


@pytest.mark.parametrize("name", ["large", "me/large@main", "me/large/more", ""])
def test_a_name_of_no_repository_is_refused(grown, name):
    with pytest.raises(CheckpointError, match="organisation/name"):
        push(grown, name)
