#!/usr/bin/env python3
"""From exec to the first byte of text, files in the file cache: `ssm generate`, again and again.

    python3 bench/startup.py MODEL [--rounds 20] [--ssm PATH] [-- FLAGS...]

MODEL is a folder with a tokenizer. Random weights of a published shape do: one step of `ssm train` writes them.

    ssm train book.txt --shape mamba-130m --tokenizer tokenizer.json --steps 1 --batch 1 --length 8 \\
        --save-dtype bf16 --out MODEL

Prints the median, the quickest, the CPU time (user and system), and the peak of the memory beside the weights.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def start(command: list[str]) -> tuple[float, float, int]:
    """Seconds to the first byte, CPU seconds to the end of the process, peak memory in KiB."""
    begin = time.perf_counter()
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    if not run.stdout.read(1):
        raise SystemExit(f"no text from: {' '.join(command)}")
    first = time.perf_counter() - begin
    run.stdout.read()
    _, status, usage = os.wait4(run.pid, 0)
    run.returncode = os.waitstatus_to_exitcode(status)
    return first, usage.ru_utime + usage.ru_stime, usage.ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--ssm", type=pathlib.Path, default=ROOT / "build/release/bin/ssm")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("flags", nargs="*", help="more flags of `ssm generate`, behind --")
    args = parser.parse_args()

    command = [str(args.ssm), "generate", str(args.model), "Once upon a time", "--max-new-tokens", "1"]
    command += ["--ignore-eos", *args.flags]
    start(command)  # the files come into the cache
    runs = [start(command) for _ in range(args.rounds)]
    first, cpu, memory = (list(column) for column in zip(*runs, strict=True))
    weights = sum(f.stat().st_size for f in args.model.iterdir() if f.suffix in (".safetensors", ".bin", ".gguf"))
    print(f"first byte of text: median {statistics.median(first):.3f} s, quickest {min(first):.3f} s")
    print(f"CPU time of the run: median {statistics.median(cpu):.3f} s, least {min(cpu):.3f} s")
    print(f"peak memory: {max(memory) / 1024:.0f} MiB, weights {weights / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
