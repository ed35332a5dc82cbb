"""The server, asked by OpenAI's own client and in the shapes that lm-eval's local-completions sends."""

import json
import math
import subprocess
import unittest
import urllib.request

import openai
from process import COMMAND, Server

SERVER = None


def setUpModule():
    global SERVER
    SERVER = Server("--dtype", "f32")


def tearDownModule():
    SERVER.stop()


TEXT = "Once upon a time there was a house by the sea, and nobody had lived there for years."


def client(**options):
    return openai.OpenAI(base_url=SERVER.url + "/v1", api_key="unused", max_retries=0, **options)


def post(path, body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(SERVER.url + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def run(*arguments, text=None):
    done = subprocess.run([COMMAND, *arguments, "--json"], input=text, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


class OpenAIClient(unittest.TestCase):
    def test_a_completion_is_what_generate_writes(self):
        answer = client().completions.create(model="any", prompt=TEXT, max_tokens=24, temperature=0)
        expected = run("generate", "--dtype", "f32", TEXT, "--temperature", "0", "-n", "24")
        self.assertEqual(answer.choices[0].text, expected["text"])
        self.assertEqual(answer.usage.completion_tokens, len(expected["tokens"]))
        self.assertIn(answer.choices[0].finish_reason, ("stop", "length"))

    def test_a_stream_is_the_whole_answer_in_pieces(self):
        whole = client().completions.create(model="m", prompt=TEXT, max_tokens=40, seed=7, temperature=0.8)
        pieces = client().completions.create(
            model="m",
            prompt=TEXT,
            max_tokens=40,
            seed=7,
            temperature=0.8,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(pieces)
        self.assertEqual("".join(c.choices[0].text for c in chunks if c.choices), whole.choices[0].text)
        self.assertEqual(chunks[-1].usage.completion_tokens, whole.usage.completion_tokens)

    def test_choices_stops_and_logprobs(self):
        answer = client().completions.create(model="m", prompt=TEXT, max_tokens=30, n=3, seed=1, stop=[" the", "."])
        self.assertEqual([c.index for c in answer.choices], [0, 1, 2])
        for choice in answer.choices:
            self.assertNotIn(" the", choice.text)
            self.assertNotIn(".", choice.text)
        answer = client().completions.create(model="m", prompt=TEXT, max_tokens=5, logprobs=3, temperature=0)
        logprobs = answer.choices[0].logprobs
        self.assertEqual(len(logprobs.tokens), 5)
        for value, top in zip(logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
            self.assertEqual(value, max(top.values()))

    def test_chat(self):
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me a story."}]
        answer = client().chat.completions.create(
            model="m", messages=messages, max_completion_tokens=12, logprobs=True, top_logprobs=2, temperature=0
        )
        self.assertEqual(answer.choices[0].message.role, "assistant")
        content = answer.choices[0].logprobs.content
        self.assertTrue(all(len(token.top_logprobs) == 2 for token in content))
        self.assertTrue(all(token.logprob == token.top_logprobs[0].logprob for token in content))
        stream = client().chat.completions.create(
            model="m", messages=messages, max_completion_tokens=12, temperature=0, stream=True
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        self.assertEqual(text, answer.choices[0].message.content)

    def test_models_and_embeddings(self):
        self.assertEqual(len(client().models.list().data), 1)
        data = client().embeddings.create(model="m", input=["a house", "by the sea"]).data  # base64 by default
        plain = client().embeddings.create(model="m", input="by the sea", encoding_format="float").data[0]
        self.assertAlmostEqual(math.hypot(*plain.embedding), 1, places=5)
        for a, b in zip(data[1].embedding, plain.embedding, strict=True):
            self.assertAlmostEqual(a, b, places=5)

    def test_a_session_through_extra_body(self):
        first = [{"role": "user", "content": "Tell me a story."}]
        options = {"model": "m", "max_completion_tokens": 6, "extra_body": {"session": "openai"}}
        client().chat.completions.create(messages=first, **options)
        answer = client().chat.completions.create(messages=[{"role": "user", "content": "Go on."}], **options)
        self.assertGreater(answer.usage.prompt_tokens_details.cached_tokens, 0)
        self.assertEqual(answer.session, "openai")

    def test_errors_are_those_of_the_client(self):
        for bad in (
            {"prompt": []},
            {"prompt": [-1]},
            {"prompt": [10**9]},
            {"prompt": "a", "max_tokens": -3},
            {"prompt": "a", "temperature": -1},
            {"prompt": "a", "n": 0},
            {"prompt": ""},
        ):
            with self.assertRaises(openai.BadRequestError, msg=str(bad)):
                client().completions.create(model="m", **bad)
        with self.assertRaises(openai.NotFoundError):
            client().files.list()

    def test_a_longer_conversation_is_read_from_where_it_was_known(self):
        prompt = TEXT * 12
        first = client().completions.create(model="m", prompt=prompt, max_tokens=2, temperature=0)
        again = client().completions.create(model="m", prompt=prompt + " And then", max_tokens=2, temperature=0)
        known = again.usage.prompt_tokens_details.cached_tokens
        self.assertGreaterEqual(known, first.usage.prompt_tokens - 1)


class LmEval(unittest.TestCase):
    """TemplateAPI's requests and LocalCompletionsAPI.parse_logprobs, as lm-eval 0.4.9 has them."""

    def test_loglikelihoods_are_those_of_score(self):
        texts = [TEXT, TEXT[:40], "It was a dark and stormy night."]
        prompts = [run("tokenize", text=text)["ids"] for text in texts]
        answer = post(
            "/v1/completions",
            {
                "prompt": prompts,
                "model": "m",
                "temperature": 0,
                "max_tokens": 1,
                "logprobs": 1,
                "seed": 1234,
                "echo": True,
            },
        )
        self.assertEqual([c["index"] for c in answer["choices"]], [0, 1, 2])
        for prompt, choice in zip(prompts, answer["choices"], strict=True):
            expected = run("score", "--dtype", "f32", "--tokens", ",".join(map(str, prompt)))
            for context in (1, len(prompt) // 2):
                values = choice["logprobs"]["token_logprobs"][context:-1]
                tops = choice["logprobs"]["top_logprobs"][context:-1]
                self.assertEqual(len(values), len(prompt) - context)
                for value, score in zip(values, expected["logprobs"][context:], strict=True):
                    self.assertAlmostEqual(value, score, places=6)
                greedy = all(value == max(top.values()) for value, top in zip(values, tops, strict=True))
                best = expected["argmax"][context - 1 : len(prompt) - 1]
                self.assertEqual(greedy, best == prompt[context:])

    def test_a_greedy_continuation_counts_as_greedy(self):
        prompt = run("tokenize", text=TEXT)["ids"]
        new = run(
            "generate", "--dtype", "f32", "--tokens", ",".join(map(str, prompt)), "--temperature", "0", "-n", "8"
        )["tokens"]
        answer = post(
            "/v1/completions",
            {"prompt": [prompt + new], "model": "m", "temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": True},
        )
        logprobs = answer["choices"][0]["logprobs"]
        pairs = zip(
            logprobs["token_logprobs"][len(prompt) : -1], logprobs["top_logprobs"][len(prompt) : -1], strict=True
        )
        self.assertTrue(all(value == max(top.values()) for value, top in pairs))

    def test_generate_until(self):
        answer = post(
            "/v1/completions",
            {"prompt": [TEXT], "model": "m", "max_tokens": 32, "temperature": 0, "stop": ["\n\n", "."], "seed": 1234},
        )
        self.assertNotIn(".", answer["choices"][0]["text"])

    def test_tokenize_and_back(self):
        tokens = post("/tokenize", {"prompt": TEXT, "add_special_tokens": False})["tokens"]
        self.assertEqual(tokens, run("tokenize", text=TEXT)["ids"])
        self.assertEqual(post("/detokenize", {"tokens": tokens})["prompt"], TEXT)


if __name__ == "__main__":
    unittest.main()
