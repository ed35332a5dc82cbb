#!/usr/bin/env python3
"""Times `ssm bench` beside llama.cpp on the shapes of the 130m models, in turn, and prints medians as a table.

    python3 bench/compare_llama_cpp.py --llama-bin BUILD/bin --llama-models FOLDER [--rounds 5] [--json OUT]

FOLDER holds mamba-130m-f16.gguf and mamba2-130m-f16.gguf (random weights of those shapes will do). Both programs get
two threads. Ratios are taken round by round, so that a machine whose speed drifts does not decide them.
"""

import argparse
import json
import pathlib
import statistics
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
SSM = ROOT / "build/release/bin/ssm"
SHAPES = ("mamba-130m", "mamba2-130m")
MEASURES = ("prompt of 512", "decode, batch 1", "decode, batch 32")


def output(command: list) -> str:
    return subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout


def ssm_round(shape: str, dtype: str, threads: int) -> dict:
    def bench(*flags):
        return json.loads(
            output(
                [SSM, "bench", shape, "--dtype", dtype, "--temperature", 0, "--threads", threads]
                + ["--repeats", 1, "--json", *flags]
            )
        )

    single = bench("--promptlen", 512, "--genlen", 64, "--batch", 1)
    many = bench("--promptlen", 16, "--genlen", 32, "--batch", 32)
    speeds = (single["prompt_tokens_per_second"], single["decode_tokens_per_second"], many["decode_tokens_per_second"])
    limits = {
        "memory_gb_per_s": single["read_bandwidth"] / 1e9,
        "gemm_gflop_per_s": single["gemm_rate"] / 1e9,
    }
    return dict(zip(MEASURES, speeds, strict=True)) | {"limits": limits}


def llama_round(binaries: pathlib.Path, model: pathlib.Path, threads: int) -> dict:
    rows = json.loads(
        output([binaries / "llama-bench", "-m", model, "-p", 512, "-n", 64, "-t", threads, "-r", 1, "-o", "json"])
    )
    prompt = next(r["avg_ts"] for r in rows if r["n_prompt"] > 0)
    decode = next(r["avg_ts"] for r in rows if r["n_gen"] > 0)
    batched = output(
        [binaries / "llama-batched-bench", "-m", model, "-c", 2048, "-b", 512, "-ub", 512, "-npp", 16]
        + ["-ntg", 32, "-npl", 32, "-t", threads, "-tb", threads, "--output-format", "jsonl"]
    )
    line = next(line for line in batched.splitlines() if line.startswith("{"))
    return dict(zip(MEASURES, (prompt, decode, json.loads(line)["speed_tg"]), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-bin", type=pathlib.Path, required=True)
    parser.add_argument("--llama-models", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()

    runs = {shape: [] for shape in SHAPES}
    for _ in range(args.rounds):
        for shape in SHAPES:
            ours = ssm_round(shape, args.dtype, args.threads)
            theirs = llama_round(args.llama_bin, args.llama_models / f"{shape}-f16.gguf", args.threads)
            runs[shape].append({"ssm": ours, "llama.cpp": theirs})
    print(f"| tokens/s, {args.threads} threads | ssm {args.dtype} | llama.cpp f16 | ratio |")
    print("|---|---|---|---|")
    for shape in SHAPES:
        for measure in MEASURES:
            ours = statistics.median(r["ssm"][measure] for r in runs[shape])
            theirs = statistics.median(r["llama.cpp"][measure] for r in runs[shape])
            ratio = statistics.median(r["ssm"][measure] / r["llama.cpp"][measure] for r in runs[shape])
            print(f"| {shape}, {measure} | {ours:.0f} | {theirs:.0f} | {ratio:.1f} |")
    limits = [r["ssm"]["limits"] for shape in SHAPES for r in runs[shape]]
    for name in ("memory_gb_per_s", "gemm_gflop_per_s"):
        print(f"\nMedian {name.replace('_', ' ')}: {statistics.median(x[name] for x in limits):.1f}")
    if args.json:
        args.json.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()
