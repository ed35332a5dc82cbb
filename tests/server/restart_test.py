"""Sessions outlive their server: killed at any moment, it leaves every turn that was answered, and no half one."""

import random
import signal
import tempfile
import threading
import time
import unittest

from process import Server

TURNS = ["Once upon a time", " there was a fox.", " It lived", " by the sea, and", " nobody knew", " its name."]


def turn(server, session, text):
    body = {"session": session, "prompt": text, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    return server.ask("POST", "/v1/completions", body)["choices"][0]["text"]


class Restart(unittest.TestCase):
    def test_killed_while_idle_and_while_writing(self):
        with Server("--dtype", "f32") as server:
            expected = [turn(server, "plain", text) for text in TURNS]
        source = random.Random(4)
        with tempfile.TemporaryDirectory() as folder:
            server = Server("--dtype", "f32", "--session-dir", folder)
            done = 0
            while done < len(TURNS):
                self.assertEqual(turn(server, "a", TURNS[done]), expected[done])
                done += 1
                # Others write, and save, when the process dies.
                names = ["other0", "other1", "other2"]
                others = [threading.Thread(target=self.write_until_it_dies, args=(server, name)) for name in names]
                for other in others:
                    other.start()
                time.sleep(source.uniform(0, 0.4))
                server.stop(signal.SIGKILL)
                for other in others:
                    other.join()
                server = Server("--dtype", "f32", "--session-dir", folder)
                with open(server.log.name) as log:
                    self.assertNotIn("warning", log.read())
                self.assertEqual(server.ask("GET", "/v1/sessions/a")["turns"], done)
                for session in server.ask("GET", "/v1/sessions")["data"]:
                    self.assertFalse(session["busy"])
                    self.check_whole(server, session["id"])
            server.stop()
            self.assertEqual(server.process.returncode, 0)

    def write_until_it_dies(self, server, session):
        self.answered = getattr(self, "answered", {})
        try:
            while True:
                turn(server, session, " And then")
                self.answered[session] = self.answered.get(session, 0) + 1
        except Exception:  # noqa: BLE001 - however the connection broke: it was to
            return

    def check_whole(self, server, session):
        about = server.ask("GET", "/v1/sessions/" + session)
        if session != "a":  # an answer may have been on its way when it died, but none that arrived is lost
            self.assertGreaterEqual(about["turns"], self.answered.get(session, 0))
            self.answered[session] = about["turns"]
        self.assertEqual(about["kind"], "completion")

    def test_two_servers_do_not_share_a_folder(self):
        expected = self.assertRaisesRegex(RuntimeError, "another server keeps its sessions here")
        with tempfile.TemporaryDirectory() as folder, Server("--session-dir", folder), expected:
            Server("--session-dir", folder)


if __name__ == "__main__":
    unittest.main()
