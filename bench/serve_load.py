#!/usr/bin/env python3
"""`ssm serve` under load, on a machine that does nothing else.

    python3 bench/serve_load.py streams [--streams 1000] [--tokens 64]     everyone at the same time
    python3 bench/serve_load.py users [--users 64] [--seconds 60] [--rounds 3]   one request after another
    python3 bench/serve_load.py overhead [--rounds 5]     one user against `ssm bench` at batch 1
    Common: [--model FOLDER] [--ssm PATH] [--dtype NAME] [--threads N]

streams: that many texts are written at the same time, none queued and none refused; reported are each one's tokens/s
while all are written, the gaps between its tokens, and the server's peak resident memory against weights and states.
users: tokens/s of the server, and of `ssm bench` with that batch, in turn; times to the first token.
overhead: time a token of a text through the server and of `ssm bench` at batch 1, in turn.

Every mode says whether its bounds hold, and exits with 1 where one does not.
"""

import argparse
import asyncio
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/server"))

from process import COMMAND, Server  # noqa: E402 - beside the tests

START = "Once upon a time there was a {} house by the sea, and in it"


def serve(args: argparse.Namespace, sequences: int, waiting: int = 0) -> Server:
    flags = [*args.model, *args.flags, "--max-sequences", sequences, "--max-waiting", waiting]
    return Server(*flags, command=args.ssm)


def peak_bytes(process: subprocess.Popen) -> int:
    for line in pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


async def stream(port: int, index: int, tokens: int) -> dict:
    """One text: when it was asked for, and when each piece of it came: a token, or more where one shows nothing."""
    body = {
        "prompt": START.format(index),
        "max_tokens": tokens,
        "seed": index,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    data = json.dumps(body).encode()
    asked = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    writer.write(head.encode() + f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
    status = int((await reader.readline()).split()[1])
    times, count = [], 0
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            if event["choices"] and event["choices"][0]["text"]:
                times.append(time.monotonic())
            count = (event["usage"] or {}).get("completion_tokens", count)
    writer.close()
    whole = status == 200 and count == tokens and len(times) > 1
    return {"status": status, "asked": asked, "times": times, "whole": whole}


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def say(name: str, value: str, holds: bool | None = None) -> bool:
    print(f"| {name} | {value} | {'' if holds is None else 'yes' if holds else 'NO'} |", flush=True)
    return holds is not False


def table() -> None:
    print(f"load average before: {os.getloadavg()[0]:.1f}")
    print("| | | holds |\n|---|---|---|")


async def all_at_once(args: argparse.Namespace, port: int) -> list[dict]:
    return await asyncio.gather(*(stream(port, i, args.tokens) for i in range(args.streams)))


def streams(args: argparse.Namespace) -> bool:
    info = json.loads(subprocess.check_output([args.ssm, "info", *args.model, "--json"]))
    needed = info["weight_bytes"] + args.streams * info["state_bytes_per_sequence"]
    table()
    with serve(args, args.streams) as server:
        texts = asyncio.run(all_at_once(args, server.port))
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


async def one_after_another(args: argparse.Namespace, port: int) -> list[dict]:
    end = time.monotonic() + args.seconds
    texts = []

    async def user(index: int) -> None:
        count = 0
        while time.monotonic() < end:
            texts.append(await stream(port, index + 1000 * count, args.tokens))
            count += 1

    await asyncio.gather(*(user(i) for i in range(args.users)))
    return texts


def users(args: argparse.Namespace) -> bool:
    table()
    ratios, first = [], []
    whole = True
    for _ in range(args.rounds):
        command = [args.ssm, "bench", *args.model, "--batch", args.users, "--promptlen", 16, "--genlen", args.tokens]
        run = subprocess.check_output([str(c) for c in command + args.flags + ["--temperature", 1, "--json"]])
        bench = json.loads(run)["decode_tokens_per_second"]
        with serve(args, args.users, args.users) as server:  # who is done asks again at once
            asyncio.run(one_after_another(argparse.Namespace(**{**vars(args), "seconds": 3}), server.port))  # warm
            texts = asyncio.run(one_after_another(args, server.port))
        whole &= all(t["whole"] for t in texts)
        first += [t["times"][0] - t["asked"] for t in texts if t["times"]]
        begin = min(t["asked"] for t in texts)
        pieces = [sum(at <= begin + args.seconds for at in t["times"]) / len(t["times"]) for t in texts if t["times"]]
        count = sum(pieces) * args.tokens
        ratios.append(count / args.seconds / bench)
        say("tokens/s: server, ssm bench", f"{count / args.seconds:.0f}, {bench:.0f} ({ratios[-1]:.3f})")
    say("first token: median, 99 %", f"{percentile(first, 0.5):.3f} s, {percentile(first, 0.99):.3f} s")
    middle = statistics.median(ratios)
    ok = say("server / ssm bench, median", f"{middle:.3f}", middle >= 0.85)
    return say("requests that were answered whole", "all" if whole else "not all", whole) and ok


def overhead(args: argparse.Namespace) -> bool:
    """Both without the first token: the time from it to the last, by the token."""
    table()
    ours, theirs = [], []
    with serve(args, 1) as server:
        for i in range(args.rounds):
            text = asyncio.run(stream(server.port, i, args.tokens))
            ours.append((text["times"][-1] - text["times"][0]) / (args.tokens - 1) * 1e6)
            command = [args.ssm, "bench", *args.model, "--batch", 1, "--promptlen", 16, "--genlen", args.tokens]
            run = subprocess.check_output([str(c) for c in command + args.flags + ["--temperature", 1, "--json"]])
            theirs.append(1e6 / json.loads(run)["decode_tokens_per_second"])
    difference = statistics.median(a - b for a, b in zip(ours, theirs, strict=True))
    say("microseconds a token: server, alone", f"{statistics.median(ours):.0f}, {statistics.median(theirs):.0f}")
    bound = 60 if not args.model else 0.03 * statistics.median(theirs)
    return say("the server's part", f"{difference:.0f} us", difference < bound)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=["streams", "users", "overhead"])
    parser.add_argument("--ssm", default=COMMAND)
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
    sys.exit(0 if {"streams": streams, "users": users, "overhead": overhead}[args.mode](args) else 1)


if __name__ == "__main__":
    main()
