#!/usr/bin/env python3
"""`ssm serve` under load, on a machine that does nothing else.

    python3 bench/serve_load.py streams [--streams 1000] [--tokens 64]     everyone at the same time
    python3 bench/serve_load.py users [--users 64] [--seconds 60] [--rounds 3]   one request after another
    python3 bench/serve_load.py overhead [--rounds 5]     one user against `ssm bench` at batch 1
    python3 bench/serve_load.py follow [--rounds 5]       the next turn of a conversation of 10,000 tokens
    python3 bench/serve_load.py soak [--users 64] [--seconds 600]   memory under requests of every kind
    Common, but for users with --port N, any server that runs there: [--model FOLDER] [--ssm PATH] [--dtype NAME]
    [--threads N]

streams: that many texts are written at the same time, none queued and none refused; reported are each one's tokens/s
while all are written, the gaps between its events, and the server's peak resident memory, its prefix cache among it,
against weights and states.
users: tokens/s of the server, and of `ssm bench` with that batch, in turn; times to the first token.
overhead: time a token of a text through the server and of `ssm bench` at batch 1, in turn.
follow: from a request to its first token's bytes, where the conversation is a session, and where the whole of it is
sent again; the bound is two steps of `ssm bench` and its time for the new tokens.
soak: texts of any length, whole and streamed, sessions, clients that vanish, damaged requests; the server's resident
memory over time. With the bundled model 600 s write as much as 64 readers take in an hour.

Every mode says whether its bounds hold, and exits with 1 where one does not.
"""

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import random
import select
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/server"))

from process import COMMAND, Server  # noqa: E402 - beside the tests

PLAIN = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0}  # whatever a server's own way of sampling
INDICES = itertools.count()  # no prompt comes twice
START = "Once upon a time there was a {} house by the sea, and in it"


def serve(args: argparse.Namespace, sequences: int, waiting: int = 0, extra: Sequence[str] = ()) -> Server:
    flags = [*args.model, *args.flags, "--max-sequences", sequences, "--max-waiting", waiting, *extra]
    return Server(*flags, command=args.ssm)


def peak_bytes(process: subprocess.Popen) -> int:
    for line in pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


class Text:
    """One request: when it was asked for, and what came when, to be read once all is over.

    It takes over the `connection` of a text that has ended, or makes one; where the server has closed that one, too."""

    def __init__(self, port: int, index: int, tokens: int, connection: socket.socket | None = None) -> None:
        body = {
            "prompt": START.format(index),
            "max_tokens": tokens,
            "seed": index,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **PLAIN,
        }
        data = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        self.tokens, self.pieces, self.end, self.asked = tokens, [], b"", time.monotonic()
        self.address, self.request, self.taken_over = ("127.0.0.1", port), head.encode() + data, connection is not None
        self.connection = connection or socket.create_connection(self.address)
        with contextlib.suppress(OSError):
            self.connection.sendall(self.request)

    def ask_anew(self) -> None:
        self.connection, self.taken_over = socket.create_connection(self.address), False
        self.connection.sendall(self.request)


def follow_all(texts: list[Text], after: Callable[[socket.socket], Text | None] = lambda _: None) -> list[Text]:
    """Takes what comes until all have ended, and whatever `after` asks for on the connection of one that has.

    A bare loop, and nothing is looked at meanwhile: this process shares the server's cores."""
    poll, texts, running = select.epoll(), list(texts), {}

    def add(text: Text) -> None:
        running[text.connection.fileno()] = text
        poll.register(text.connection, select.EPOLLIN)

    for text in texts:
        add(text)
    while running:
        for file, _ in poll.poll():
            text = running[file]
            try:
                data = text.connection.recv(65536)
            except OSError:
                data = b""
            if data:
                text.pieces.append((time.monotonic(), data))
                text.end = (text.end + data)[-7:]
                if text.end != b"\r\n0\r\n\r\n" and text.pieces[0][1].startswith(b"HTTP/1.1 200"):
                    continue
            following = after(text.connection) if data else None
            if following:
                texts.append(following)
                running[file] = following
                continue
            poll.unregister(file)
            running.pop(file).connection.close()
            if not text.pieces and text.taken_over:
                text.ask_anew()
                add(text)
    return texts


def read(text: Text) -> dict:
    """When each piece of a text came, a token, or more where one shows nothing; and whether it was whole."""
    times, count, rest = [], 0, b""
    for at, data in text.pieces:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event["choices"] and event["choices"][0]["text"]:
                times.append(at)
            count = (event.get("usage") or {}).get("completion_tokens", count)
    status = int(text.pieces[0][1].split()[1]) if text.pieces else 0
    whole = status == 200 and count == text.tokens and len(times) > 1
    return {"status": status, "asked": text.asked, "times": times, "whole": whole}


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def say(name: str, value: str, holds: bool | None = None) -> bool:
    print(f"| {name} | {value} | {'' if holds is None else 'yes' if holds else 'NO'} |", flush=True)
    return holds is not False


def table() -> None:
    print(f"load average before: {os.getloadavg()[0]:.1f}")
    print("| | | holds |\n|---|---|---|")


def streams(args: argparse.Namespace) -> bool:
    info = json.loads(subprocess.check_output([args.ssm, "info", *args.model, "--json"]))
    needed = info["weight_bytes"] + args.streams * info["state_bytes_per_sequence"]
    table()
    with serve(args, args.streams) as server:
        texts = [read(t) for t in follow_all([Text(server.port, i, args.tokens) for i in range(args.streams)])]
        peak = peak_bytes(server.process)
    whole = [t for t in texts if t["whole"]]
    ok = say("streams that were whole", f"{len(whole)} of {args.streams}", len(whole) == args.streams)
    if not whole:
        return False
    gaps = [b - a for t in whole for a, b in zip(t["times"], t["times"][1:], strict=False)]
    rates = [(args.tokens - 1) / (t["times"][-1] - t["times"][0]) for t in whole]
    together = min(t["times"][-1] for t in whole) - max(t["times"][0] for t in whole)
    ok &= say("all were written together for", f"{together:.1f} s", together > 0)
    ok &= say("tokens/s of the slowest stream", f"{min(rates):.2f}", min(rates) >= 3)
    say("tokens/s of the median stream, of all", f"{statistics.median(rates):.2f}, {sum(rates):.0f}")
    ok &= say("gaps under 1 s", f"{sum(g < 1 for g in gaps) / len(gaps):.4%}", percentile(gaps, 0.99) < 1)
    middle, late = percentile(gaps, 0.5), percentile(gaps, 0.99)
    say("gap: median, 99 %, longest", f"{middle:.3f} s, {late:.3f} s, {max(gaps):.3f} s")
    first = [t["times"][0] - t["asked"] for t in whole]
    say("first token: median, 99 %", f"{percentile(first, 0.5):.2f} s, {percentile(first, 0.99):.2f} s")
    ok &= say(
        "peak resident memory / (weights + states)",
        f"{peak / 2**20:.0f} MiB / {needed / 2**20:.0f} MiB = {peak / needed:.2f}",
        peak <= 1.5 * needed,
    )
    return ok


def one_after_another(args: argparse.Namespace, port: int, seconds: float) -> list[dict]:
    end = time.monotonic() + seconds

    def ask(connection: socket.socket | None = None) -> Text | None:
        return Text(port, next(INDICES), args.tokens, connection) if time.monotonic() < end else None

    return [read(t) for t in follow_all([ask() for _ in range(args.users)], ask)]


def load(args: argparse.Namespace, port: int) -> tuple[list[dict], float]:
    """What every request got, and the tokens/s of all together."""
    one_after_another(args, port, 3)  # warm
    texts = one_after_another(args, port, args.seconds)
    begin = min(t["asked"] for t in texts)
    pieces = [sum(at <= begin + args.seconds for at in t["times"]) / len(t["times"]) for t in texts if t["times"]]
    return texts, sum(pieces) * args.tokens / args.seconds


def users(args: argparse.Namespace) -> bool:
    table()
    texts, ratios, both = [], [], []
    for _ in range(args.rounds):
        if args.port:
            more, rate = load(args, args.port)
            say("tokens/s", f"{rate:.0f}")
        else:
            alone = bench(args, args.users, 16)
            with serve(args, args.users, args.users) as server:  # who is done asks again at once
                more, rate = load(args, server.port)
            decode, same = alone["decode_tokens_per_second"], args.users * args.tokens / alone["total_seconds"]
            ratios.append(rate / decode)
            both.append(rate / same)
            say("tokens/s: server, `ssm bench` writing, reading and writing", f"{rate:.0f}, {decode:.0f}, {same:.0f}")
        texts += more
    first = [t["times"][0] - t["asked"] for t in texts if t["times"]]
    say("first token: median, 99 %", f"{percentile(first, 0.5):.3f} s, {percentile(first, 0.99):.3f} s")
    ok = True
    if ratios:
        middle = statistics.median(ratios)
        ok = say("server / `ssm bench` writing alone, median", f"{middle:.3f}", middle >= 0.85)
        say("server / `ssm bench` reading such prompts too", f"{statistics.median(both):.3f}")
    whole = all(t["whole"] for t in texts)
    return say("requests that were answered whole", "all" if whole else "not all", whole) and ok


def overhead(args: argparse.Namespace) -> bool:
    """Both without the first token: the time from it to the last, by the token."""
    table()
    ours, theirs = [], []
    with serve(args, 1) as server:
        for i in range(args.rounds):
            text = read(follow_all([Text(server.port, i, args.tokens)])[0])
            ours.append((text["times"][-1] - text["times"][0]) / (args.tokens - 1) * 1e6)
            theirs.append(1e6 / bench(args, 1, 16)["decode_tokens_per_second"])
    difference = statistics.median(a - b for a, b in zip(ours, theirs, strict=True))
    say("microseconds a token: server, alone", f"{statistics.median(ours):.0f}, {statistics.median(theirs):.0f}")
    bound = 60 if not args.model else 0.03 * statistics.median(theirs)
    return say("the server's part", f"{difference:.0f} us", difference < bound)


def bench(args: argparse.Namespace, batch: int, prompt: int) -> dict:
    command = [args.ssm, "bench", *args.model, "--batch", batch, "--promptlen", prompt, "--genlen", args.tokens]
    return json.loads(subprocess.check_output([str(c) for c in command + args.flags + ["--temperature", 1, "--json"]]))


def first_bytes(port: int, body: dict) -> float:
    """Seconds from a request to the first bytes of its text."""
    data = json.dumps({**body, "stream": True, "ignore_eos": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        begin = time.monotonic()
        connection.sendall(head.encode() + data)
        answer = b""
        while b"data: {" not in answer:
            answer += connection.recv(65536)
        took = time.monotonic() - begin
        while b"[DONE]" not in answer:
            answer += connection.recv(65536)
    return took


def follow(args: argparse.Namespace) -> bool:
    """In a server that has run for a while: its caches are full, and their memory is used again."""
    table()
    long, new, warm = 10_000, 20, 20
    rounds = warm + args.rounds
    ids = [1 + i * 7919 % 250 for i in range(long + rounds * new)]

    def limit() -> float:
        speed = bench(args, 1, new)
        return 2 / speed["decode_tokens_per_second"] + new / speed["prompt_tokens_per_second"]

    limits = [limit() for _ in range(3)]
    took = {"session": [], "whole": []}
    with serve(args, 4, extra=["--prefix-cache-mb", "64"]) as server:
        cold = first_bytes(server.port, {"prompt": ids[:long], "max_tokens": 1, "session": "long"})
        first_bytes(server.port, {"prompt": ids[:long], "max_tokens": 1})
        for kind, times in took.items():
            for i in range(rounds):
                end = long + (i + 1) * new
                turn = {"prompt": ids[:end]} if kind == "whole" else {"prompt": ids[end - new : end], "session": "long"}
                times.append(first_bytes(server.port, {**turn, "max_tokens": 4}))
    bound = statistics.median(limits + [limit() for _ in range(3)])
    say("10,000 tokens read for the first time", f"{cold * 1e3:.0f} ms")
    say("two steps and 20 new tokens in `ssm bench`", f"{bound * 1e3:.2f} ms")
    middle = statistics.median(took["session"][warm:])
    ok = say("first token of a session's next turn, median", f"{middle * 1e3:.2f} ms", middle <= bound)
    middle = statistics.median(took["whole"][warm:])
    say("the same where all ids before are sent again", f"{middle * 1e3:.2f} ms")
    return ok


def resident_bytes(process: subprocess.Popen) -> int:
    return int(pathlib.Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def visitor(port: int, rng: random.Random, end: float, done: dict) -> None:
    """One request after another, of every kind; `done` counts them and what they got."""
    while time.monotonic() < end:
        kind = rng.choices(["text", "stream", "session", "vanish", "damaged"], [4, 8, 2, 1, 1])[0]
        prompt = START.format(rng.randrange(1000)) * rng.choice([1, 1, 1, 1, 1, 1, 1, 40])
        body = {"prompt": prompt, "max_tokens": rng.randint(1, 200), "ignore_eos": True, "n": rng.choice([1, 1, 2])}
        if kind == "session":
            body |= {"session": f"s{rng.randrange(50)}", "n": 1}
        body["stream"] = kind in ("stream", "vanish")
        data = json.dumps(body).encode()
        if kind == "damaged":
            data = data[: rng.randrange(len(data))] + bytes(rng.randrange(256) for _ in range(9))
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(data)}"
        answer = b""
        with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
            connection.sendall(head.encode() + b"\r\n\r\n" + data)
            while piece := connection.recv(65536):
                answer += piece
                if kind == "vanish" and len(answer) > 2000:
                    break
        status = answer[9:12].decode()
        expected = {"damaged": ("400", "200"), "session": ("200", "409")}.get(kind, ("200",))
        whole = kind == "vanish" or not answer.startswith(b"HTTP/1.1 200") or answer.rstrip().endswith((b"}", b"0"))
        with done["lock"]:
            done["requests"] += 1
            done["wrong"] += status not in expected or not whole
            done["bytes"] += len(answer)


def soak(args: argparse.Namespace) -> bool:
    table()
    memory, done = [], {"requests": 0, "wrong": 0, "bytes": 0, "lock": threading.Lock()}
    with serve(args, args.users, args.users) as server:
        end = time.monotonic() + args.seconds
        users = [
            threading.Thread(target=visitor, args=(server.port, random.Random(i), end, done)) for i in range(args.users)
        ]
        for user in users:
            user.start()
        while time.monotonic() < end:
            time.sleep(args.seconds / 60)
            memory.append(resident_bytes(server.process))
        for user in users:
            user.join()
        text = server.open("GET", "/metrics").read().decode()
    tokens = next(float(line.split()[1]) for line in text.splitlines() if line.startswith("ssm_new_tokens_total "))
    third = len(memory) // 3
    early, late = max(memory[third : 2 * third]), max(memory[2 * third :])
    say("requests, new tokens", f"{done['requests']}, {tokens:.0f}")
    ok = say("answers that were not as they should be", str(done["wrong"]), done["wrong"] == 0)
    say("resident memory by the minute, MiB", " ".join(str(m >> 20) for m in memory[5::6]))
    growth = late / early
    return say("most of the last third / of the second third", f"{growth:.3f}", growth < 1.02) and ok


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=list(MODES))
    parser.add_argument("--ssm", default=COMMAND)
    parser.add_argument("--port", type=int, help="users: of a server that runs already, of any program")
    parser.add_argument("--model", default=[], type=lambda model: [model])
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    args.flags = ["--dtype", args.dtype, "--threads", args.threads]
    sys.exit(0 if MODES[args.mode](args) else 1)


MODES = {"streams": streams, "users": users, "overhead": overhead, "follow": follow, "soak": soak}


if __name__ == "__main__":
    main()
