"""The page in a real Chromium: chat, text, stop, sessions, forks, probabilities; light, dark and phone.

With SSM_SCREENSHOTS=FOLDER it leaves screenshots there, to be looked at.
"""

import os
import pathlib
import re
import unittest

from playwright.sync_api import expect, sync_playwright
from process import Server

SCREENSHOTS = os.environ.get("SSM_SCREENSHOTS")
PHONE = {"width": 375, "height": 667}


class Page(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--max-tokens", "100000")
        cls.playwright = sync_playwright().start()
        # A test's browser may run as root, where Chromium's sandbox does not.
        cls.browser = cls.playwright.chromium.launch(executable_path=os.environ["CHROMIUM"], args=["--no-sandbox"])

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()
        cls.playwright.stop()
        cls.server.stop()

    def open(self, **options):
        context = self.browser.new_context(**options)
        self.addCleanup(context.close)
        page = context.new_page()
        self.errors = []
        self.requests = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(self.server.url)
        expect(page.locator("#title")).to_have_text("tale-10m")
        return page

    def say(self, page, text, tokens=24):
        page.evaluate(f"document.getElementById('max_tokens').value = {tokens}")
        page.evaluate("document.getElementById('seed').value = 1")
        page.locator("#input").fill(text)
        page.locator("#input").press("Enter")
        expect(page.locator("#stop")).to_be_hidden()

    def shoot(self, page, name):
        if SCREENSHOTS:
            page.screenshot(path=pathlib.Path(SCREENSHOTS) / f"{name}.png")

    def tearDown(self):
        self.assertEqual(self.errors, [])
        for url in self.requests:
            self.assertTrue(url.startswith((self.server.url, "data:")), url)

    def test_a_chat_is_a_session_that_can_be_forked_and_deleted(self):
        page = self.open()
        self.say(page, "Tell me of the sea.")
        expect(page.locator("#log .assistant .token").first).to_be_visible()
        expect(page.locator("#status")).to_contain_text(re.compile(r"\d+ tokens, [\d.]+ tokens/s"))
        self.say(page, "And then?")
        expect(page.locator("#log .assistant")).to_have_count(2)
        expect(page.locator("#status")).to_contain_text(re.compile(r"[1-9]\d* of \d+ tokens known"))
        expect(page.locator("#list li")).to_have_count(1)
        page.get_by_role("button", name="Fork").click()
        expect(page.locator("#list li")).to_have_count(2)
        expect(page.locator("#log .user")).to_have_count(2)
        self.say(page, "Who was she?")
        expect(page.locator("#log .user")).to_have_count(3)
        self.shoot(page, "chat-light")
        for button in page.locator("#list button").all():
            box = button.bounding_box()
            self.assertTrue(box["x"] >= 0 and box["x"] + box["width"] <= 256, box)
        page.locator("#list .open:not([aria-current=true])").click()
        expect(page.locator("#log .user")).to_have_count(2)
        for left in (1, 0):
            page.get_by_role("button", name="Delete").first.click()
            expect(page.locator("#list li")).to_have_count(left)
        self.assertEqual(self.server.ask("GET", "/v1/sessions")["data"], [])

    def test_text_goes_on_and_shows_probabilities(self):
        page = self.open(color_scheme="dark")
        page.get_by_role("button", name="Text", exact=True).click()
        self.say(page, "Once upon a time")
        self.say(page, " The fox", tokens=60)
        expect(page.locator("#log .text")).to_have_count(1)
        self.assertIn("Once upon a time", page.locator("#log .text").inner_text())
        page.locator("#shade").check()
        # Each token by itself, though several may come in one event; but for parts of one character.
        self.assertGreaterEqual(page.locator("#log .token").count(), 75)
        shown = "".join(page.locator("#log .token, #log .given").all_text_contents())
        self.assertEqual(shown, page.locator("#log .text").text_content())
        parts = page.evaluate(
            """partsOf("her’s x", ["her", "bytes:\\\\xe2\\\\x80", "bytes:\\\\x99", "s", " x", "y"]
            .map((token) => ({ token }))).map((part) => [part.text, part.tokens.length])"""
        )
        self.assertEqual(parts, [["her", 1], ["’", 2], ["s", 1], [" x", 1]])
        page.locator("#log .token").nth(3).hover()
        expect(page.locator("#tip")).to_be_visible()
        self.assertIn(len(re.findall(r"[\d.]+ %", page.locator("#tip").inner_text())), (5, 6))
        self.shoot(page, "text-dark")
        page.locator("#log").focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator("#log .token").nth(4)).to_have_class("token at")
        page.keyboard.press("Escape")
        expect(page.locator("#tip")).to_be_hidden()

    def test_stop_ends_a_text_and_keeps_what_was_written(self):
        page = self.open()
        page.get_by_role("button", name="Text", exact=True).click()
        page.evaluate("document.getElementById('max_tokens').value = 100000")
        page.locator("#input").fill("Once")
        page.get_by_role("button", name="Write", exact=True).click()
        expect(page.locator("#log .token").nth(20)).to_be_attached()
        page.get_by_role("button", name="Stop", exact=True).click()
        expect(page.locator("#stop")).to_be_hidden()
        expect(page.locator("#status")).to_contain_text("stopped")
        self.say(page, " The end", tokens=3)
        session = self.server.ask("GET", "/v1/sessions")["data"][0]
        text = self.server.ask("GET", "/v1/sessions/" + session["id"])["text"]
        self.assertEqual(session["turns"], 2)
        self.assertTrue(text.startswith("Once"))
        self.assertIn(" The end", text)

    def test_errors_are_shown(self):
        page = self.open()
        page.locator("#temperature").fill("-1")
        page.locator("#input").fill("x")
        page.locator("#input").press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("temperature is -1")
        self.errors = [error for error in self.errors if "400" not in error]  # Chromium tells of it too

    def test_a_phone(self):
        for scheme in ("light", "dark"):
            page = self.open(viewport=PHONE, has_touch=True, is_mobile=True, color_scheme=scheme)
            self.say(page, "Tell me of the sea and of a very long voyage.", tokens=60)
            width = page.evaluate("document.documentElement.scrollWidth")
            self.assertLessEqual(width, PHONE["width"])
            for name in ("#send", "#input", "#show-sessions", "#show-settings"):
                box = page.locator(name).bounding_box()
                self.assertLessEqual(box["x"] + box["width"], PHONE["width"], name)
                self.assertGreaterEqual(box["height"], 38, name)
            page.locator("#log .token").nth(2).tap()
            expect(page.locator("#tip")).to_be_visible()
            self.shoot(page, f"phone-{scheme}")
            page.locator("#show-sessions").tap()
            expect(page.locator("#list")).to_be_visible()
            self.shoot(page, f"phone-sessions-{scheme}")
            page.locator("#show-settings").tap()
            expect(page.locator("#temperature")).to_be_visible()
            expect(page.locator("#list")).to_be_hidden()
            self.shoot(page, f"phone-settings-{scheme}")
            page.locator("#show-settings").tap()

    def test_everything_with_the_keyboard(self):
        page = self.open()
        page.keyboard.type("Hello")
        page.evaluate("document.getElementById('max_tokens').value = 4")
        page.keyboard.press("Enter")
        expect(page.locator("#stop")).to_be_hidden()
        expect(page.locator("#log .assistant")).to_have_count(1)
        reached = set()
        for _ in range(60):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
        for control in ("new", "open", "small", "log", "input", "send", "temperature", "key", "mode-completion"):
            self.assertIn(control, reached)


if __name__ == "__main__":
    unittest.main()
