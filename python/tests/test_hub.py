"""Names of the hub, against one of this machine that speaks its API: config, tokenizer and weights are pulled when they
are asked for, and found ever after; what Transformers' library left in the cache is found too."""

import hashlib
import http.server
import importlib.util
import json
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest

import ssm_cpp
from conftest import BUNDLED

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """Of one model, o/m, in `folder`."""

    folder: pathlib.Path
    asked: list

    def do_GET(self):
        self.asked.append(f"{self.command} {self.path} {self.headers.get('Authorization', '')}".strip())
        if self.path.startswith("/api/models/o/m/revision/"):
            files = [{"rfilename": p.name} for p in sorted(self.folder.iterdir())]
            return self.answer(json.dumps({"sha": COMMIT, "siblings": files}).encode(), "none")
        path = self.folder / self.path.rsplit("/", 1)[-1]
        if not self.path.startswith((f"/o/m/resolve/{COMMIT}/", "/o/m/resolve/main/")) or not path.is_file():
            return self.send_error(404)
        content = path.read_bytes()
        self.answer(content, hashlib.sha256(content).hexdigest())

    do_HEAD = do_GET

    def answer(self, content, etag):
        self.send_response(200)
        for name, value in (("ETag", f'"{etag}"'), ("X-Repo-Commit", COMMIT), ("Content-Length", str(len(content)))):
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    config = ssm_cpp.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=6144)
    ssm_cpp.AutoModelForCausalLM.from_config(config, seed=2).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((BUNDLED / name).read_bytes())
    (folder / "README.md").write_text("not needed")
    handler = type("Handler", (Hub,), {"folder": folder, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_names_are_pulled_when_they_are_asked_for(hub, monkeypatch):
    with pytest.raises(ssm_cpp.Error, match="local_files_only"):
        ssm_cpp.AutoTokenizer.from_pretrained("o/m", local_files_only=True)
    assert hub.asked == []
    assert ssm_cpp.AutoConfig.from_pretrained("o/m").hidden_size == 32
    tokenizer = ssm_cpp.AutoTokenizer.from_pretrained("o/m")
    assert not any("safetensors" in line for line in hub.asked)
    model = ssm_cpp.MambaForCausalLM.from_pretrained("o/m", revision="refs/pr/9")
    assert any("revision/refs%2Fpr%2F9" in line for line in hub.asked)
    here = ssm_cpp.MambaForCausalLM.from_pretrained(hub.folder)
    np.testing.assert_array_equal(model([[1, 2, 3]]).logits, here([[1, 2, 3]]).logits)
    before = len(hub.asked)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again = ssm_cpp.AutoModelForCausalLM.from_pretrained("o/m", revision="refs/pr/9")
    assert again([[1]]).logits.shape == (1, 1, 6144) and len(hub.asked) == before
    assert tokenizer("Once")["input_ids"] == model.tokenizer()("Once")["input_ids"]
    with pytest.raises(ssm_cpp.Error, match="HF_HUB_OFFLINE"):
        ssm_cpp.AutoModelForCausalLM.from_pretrained("o/other")
    assert not any("README" in line for line in hub.asked)


def test_tokens_and_pipelines(hub):
    ssm_cpp.AutoModelForCausalLM.from_pretrained("o/m", token="of-a-test")
    assert all(line.endswith("Bearer of-a-test") for line in hub.asked)
    generate = ssm_cpp.pipeline("text-generation", model="o/m")
    assert generate("Once", max_new_tokens=3, eos_token_id=[])[0]["generated_text"].startswith("Once")
    with pytest.raises(ssm_cpp.Error, match="no such model"):
        ssm_cpp.AutoModelForCausalLM.from_pretrained("o/nothing")


def test_a_callback_error_is_the_error(hub):
    def broken(*_):
        raise RuntimeError("from the callback")

    with pytest.raises(RuntimeError, match="from the callback"):
        ssm_cpp._core.find_or_pull("o/m", True, False, None, broken)


@pytest.mark.skipif(importlib.util.find_spec("huggingface_hub") is None, reason="huggingface_hub is not installed")
def test_huggingface_hub_finds_ours_and_the_other_way_round(hub, tmp_path, monkeypatch):
    def theirs(code):  # in a process of its own: the library reads the environment when it is imported
        subprocess.run([sys.executable, "-c", f"from huggingface_hub import *\n{code}"], check=True)

    ssm_cpp.AutoModelForCausalLM.from_pretrained("o/m")
    theirs("import os; assert os.path.isfile(try_to_load_from_cache('o/m', 'model.safetensors'))")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "theirs"))
    theirs("[hf_hub_download('o/m', name) for name in ('config.json', 'model.safetensors')]")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert ssm_cpp.AutoModelForCausalLM.from_pretrained("o/m")([[1]]).logits.shape == (1, 1, 6144)
