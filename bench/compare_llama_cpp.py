#!/usr/bin/env python3
"""Times `ssm bench` beside llama.cpp on the shapes of the 130m models, in turn, and prints medians as a table.

    python3 bench/compare_llama_cpp.py --llama-bin BUILD/bin --llama-models FOLDER [--types bf16,q8_0] [--rounds 5]

FOLDER holds mamba-130m-TYPE.gguf and mamba2-130m-TYPE.gguf (random weights of those shapes will do), with f16 for our
bf16. Both programs get two threads. Ratios are taken round by round, so that a machine whose speed drifts does not
decide them; so are the fractions of the limits that `ssm bench` measures in the same process.
"""

import argparse
import json
import pathlib
import statistics
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
SSM = ROOT / "build/release/bin/ssm"
SHAPES = ("mamba-130m", "mamba2-130m")
MEASURES = ("prompt of 512", "prompt of 2048", "decode, batch 1", "decode, batch 32", "the same, states in f16")
LLAMA_TYPES = {"bf16": "f16"}  # llama.cpp's bf16 products are slower than its f16 ones


def output(command: list) -> str:
    return subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout


def ssm_round(shape: str, kind: str, threads: int) -> dict:
    flags = ["--stored", kind, "--dtype", kind] if kind in ("f32", "bf16", "f16") else ["--quantize", kind]

    def bench(prompt: int, new: int, batch: int, state: str = "f32"):
        sizes = ["--promptlen", prompt, "--genlen", new, "--batch", batch, "--state-dtype", state]
        common = ["--temperature", 0, "--threads", threads, "--repeats", 1, "--json"]
        return json.loads(output([SSM, "bench", shape, *flags, *sizes, *common]))

    single, long, many = bench(512, 64, 1), bench(2048, 1, 1), bench(16, 32, 32)
    narrow = bench(16, 32, 32, "f16")
    speeds = (
        single["prompt_tokens_per_second"],
        long["prompt_tokens_per_second"],
        single["decode_tokens_per_second"],
        many["decode_tokens_per_second"],
        narrow["decode_tokens_per_second"],
    )
    fractions = [single["prompt_fraction"], long["prompt_fraction"]]
    fractions += [b["decode_fraction"] for b in (single, many, narrow)]
    return {
        "speed": dict(zip(MEASURES, speeds, strict=True)),
        "fraction": dict(zip(MEASURES, fractions, strict=True)),
        "memory_gb_per_s": single["read_bandwidth"] / 1e9,
        "gemm_gflop_per_s": single["gemm_rate"] / 1e9,
    }


def llama_round(binaries: pathlib.Path, model: pathlib.Path, threads: int) -> dict:
    sizes = ["-p", "512,2048", "-n", 64, "-t", threads, "-r", 1]
    rows = json.loads(output([binaries / "llama-bench", "-m", model, *sizes, "-o", "json"]))
    prompts = [next(r["avg_ts"] for r in rows if r["n_prompt"] == n) for n in (512, 2048)]
    decode = next(r["avg_ts"] for r in rows if r["n_gen"] > 0)
    batched = output(
        [binaries / "llama-batched-bench", "-m", model, "-c", 2048, "-b", 512, "-ub", 512, "-npp", 16]
        + ["-ntg", 32, "-npl", 32, "-t", threads, "-tb", threads, "--output-format", "jsonl"]
    )
    line = next(line for line in batched.splitlines() if line.startswith("{"))
    together = json.loads(line)["speed_tg"]
    return dict(zip(MEASURES, (*prompts, decode, together, together), strict=True))  # its states are f32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-bin", type=pathlib.Path, required=True)
    parser.add_argument("--llama-models", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--types", default="bf16")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()

    runs = {(shape, kind): [] for kind in args.types.split(",") for shape in SHAPES}
    for _ in range(args.rounds):
        for (shape, kind), rounds in runs.items():
            ours = ssm_round(shape, kind, args.threads)
            model = args.llama_models / f"{shape}-{LLAMA_TYPES.get(kind, kind)}.gguf"
            rounds.append({"ssm": ours, "llama.cpp": llama_round(args.llama_bin, model, args.threads)})

    def median(rounds: list, figure) -> float:
        return statistics.median(figure(r) for r in rounds)

    print(f"| tokens/s, {args.threads} threads | type | ssm | of the limit | llama.cpp | ratio |")
    print("|---|---|---|---|---|---|")
    for (shape, kind), rounds in runs.items():
        for m in MEASURES:
            ours = median(rounds, lambda r, m=m: r["ssm"]["speed"][m])
            fraction = median(rounds, lambda r, m=m: r["ssm"]["fraction"][m])
            theirs = median(rounds, lambda r, m=m: r["llama.cpp"][m])
            ratio = median(rounds, lambda r, m=m: r["ssm"]["speed"][m] / r["llama.cpp"][m])
            print(f"| {shape}, {m} | {kind} | {ours:.0f} | {100 * fraction:.0f} % | {theirs:.0f} | {ratio:.1f} |")
    every = [r for rounds in runs.values() for r in rounds]
    for name in ("memory_gb_per_s", "gemm_gflop_per_s"):
        print(f"\nMedian {name.replace('_', ' ')}: {median(every, lambda r, name=name: r['ssm'][name]):.1f}")
    if args.json:
        args.json.write_text(json.dumps([{"run": key, "rounds": r} for key, r in runs.items()], indent=1) + "\n")


if __name__ == "__main__":
    main()
