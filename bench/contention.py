#!/usr/bin/env python3
"""Decode while another program keeps one CPU busy: tokens of each second, alone and beside a busy process that is
pinned to one of the CPUs, in two runs of `ssm bench`.

    python3 bench/contention.py [--model mamba-130m] [--seconds 60] [--cpu 1] [--threads 2] [--ssm PATH]

Prints the medians and the worst second, and the same as parts of the median alone.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUSY = "while True: pass"


def each_second(args: argparse.Namespace, tokens: int) -> list[int]:
    command = [args.ssm, "bench", args.model, "--threads", args.threads, "--promptlen", 8, "--genlen", tokens]
    command += ["--repeats", 1, "--json"]
    run = subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True)
    return json.loads(run.stdout)["tokens_each_second"]


def beside_busy_process(args: argparse.Namespace, tokens: int) -> list[int]:
    busy = subprocess.Popen([sys.executable, "-c", BUSY], preexec_fn=lambda: os.sched_setaffinity(0, {args.cpu}))
    try:
        time.sleep(1)
        return each_second(args, tokens)
    finally:
        busy.kill()
        busy.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ssm", type=pathlib.Path, default=ROOT / "build/release/bin/ssm")
    parser.add_argument("--model", default="mamba-130m")
    parser.add_argument("--seconds", type=int, default=60, help="of the run beside the busy process, at least")
    parser.add_argument("--cpu", type=int, default=1, help="that the busy process is pinned to")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    rate = statistics.median(each_second(args, 400))
    alone = each_second(args, int(rate * args.seconds / 3))
    shared = beside_busy_process(args, int(rate * args.seconds))
    median = statistics.median(alone)
    print(f"load average before: {os.getloadavg()[0]:.1f}")
    print("| tokens in a second | median | worst | seconds |")
    print("|---|---|---|---|")
    for name, counts in (("alone", alone), ("beside a busy process", shared)):
        middle, worst = statistics.median(counts), min(counts)
        print(f"| {name} | {middle:.0f} ({middle / median:.2f}) | {worst} ({worst / median:.2f}) | {len(counts)} |")


if __name__ == "__main__":
    main()
