"""A server process for tests and benchmarks: `ssm serve` on a free port, asked with the standard library alone."""

import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMAND = os.environ.get("SSM_COMMAND", str(ROOT / "build/release/bin/ssm"))


class Server:
    def __init__(self, *flags, command=COMMAND):
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115 - gone with the object
        self.process = subprocess.Popen([command, "serve", "--port", "0", *map(str, flags)], stderr=self.log)
        self.url = ""
        for _ in range(600):
            with open(self.log.name) as log:
                lines = [line for line in log if "serving" in line and line.endswith("\n")]
            if lines:
                self.url = lines[0].split(" on ")[1].strip()
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        with open(self.log.name) as log:
            raise RuntimeError("the server does not start: " + log.read())

    @property
    def port(self):
        return int(self.url.rsplit(":", 1)[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self, with_signal=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(with_signal)
        self.process.wait(60)

    def open(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        return urllib.request.urlopen(request, timeout=60)

    def ask(self, method, path, body=None):
        """The answer's object; one that is an error has its status beside it."""
        try:
            with self.open(method, path, body) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            return {"status": error.code, **json.load(error)}
