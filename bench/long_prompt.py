#!/usr/bin/env python3
"""Prompts up to a million tokens: time, CPU time and peak memory of `ssm generate`, by length.

    python3 bench/long_prompt.py [--model FOLDER] [--lengths 1000,10000,100000,1000000] [--threads 2] [--ssm PATH]

Random tokens, one token generated. Without --model it is the bundled model. CPU time counts all threads; it does not
grow when other programs use the machine, so its column shows best whether time is linear.
"""

import argparse
import os
import pathlib
import random
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
VOCABULARY = 4096  # ids below; each published model has more


def read_prompt(args: argparse.Namespace, length: int) -> tuple[float, float, int]:
    """Seconds, CPU seconds, peak memory in KiB."""
    rng = random.Random(length)
    with tempfile.NamedTemporaryFile("w", suffix=".tokens") as tokens:
        tokens.write(",".join(str(rng.randrange(VOCABULARY)) for _ in range(length)))
        tokens.flush()
        model = [args.model] if args.model else []
        command = [str(args.ssm), "generate", *model, "--tokens", f"@{tokens.name}"]
        command += ["--max-new-tokens", "1", "--ignore-eos", "--temperature", "0", "--threads", str(args.threads)]
        begin = time.perf_counter()
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
    if run.returncode != 0:
        raise SystemExit(f"failed: {' '.join(command)}")
    return time.perf_counter() - begin, usage.ru_utime + usage.ru_stime, usage.ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ssm", type=pathlib.Path, default=ROOT / "build/release/bin/ssm")
    parser.add_argument("--model")
    parser.add_argument("--lengths", default="1000,10000,100000,1000000")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    print("| tokens | s | tok/s | CPU s | CPU us a token | peak MiB |")
    print("|---|---|---|---|---|---|")
    for length in (int(text) for text in args.lengths.split(",")):
        seconds, cpu, memory = read_prompt(args, length)
        rates = f"{seconds:.2f} | {length / seconds:.0f} | {cpu:.2f} | {cpu / length * 1e6:.1f}"
        print(f"| {length} | {rates} | {memory / 1024:.0f} |", flush=True)


if __name__ == "__main__":
    main()
