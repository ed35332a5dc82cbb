#!/usr/bin/env python3
"""What quantizing costs: sizes, perplexity and KL divergence against the original, by type, as a Markdown table.

    python3 bench/quantize.py build/release/bin/ssm MODEL --text valid.txt [--calibrate train.txt] [--types TYPES]

TYPES are separated by commas; int types carry their group: q8_0,int4:64. With
--calibrate each type of five bits or fewer is made a second time.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

TYPES = "q8_0,int8:128,q6_k,q5_k,q4_k,q5_1,q5_0,q4_1,q4_0,int4:32,int4:64,int4:128"


def report(arguments, kind, calibrated):
    name, _, group = kind.partition(":")
    with tempfile.TemporaryDirectory() as folder:
        command = [arguments.ssm, "quantize", arguments.model, str(pathlib.Path(folder) / "made")]
        command += ["--type", name, "--text", arguments.text, "--json"]
        command += ["--group", group] if group else []
        command += ["--calibrate", arguments.calibrate] if calibrated else []
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ssm")
    parser.add_argument("model")
    parser.add_argument("--text", required=True)
    parser.add_argument("--calibrate")
    parser.add_argument("--types", default=TYPES)
    arguments = parser.parse_args()
    print("| type | calibrated | bits a weight | perplexity | change | KL, nats | largest | same best token |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in arguments.types.split(","):
        few_bits = kind.startswith(("q5", "q4", "int4"))
        for calibrated in [False, True] if arguments.calibrate and few_bits else [False]:
            made = report(arguments, kind, calibrated)
            text = made["text"]
            print(
                f"| {made['type']} | {'yes' if calibrated else 'no'} | {made['bits_per_weight']:.2f} "
                f"| {text['perplexity']:.4f} | {100 * text['perplexity_change']:+.3f} % | {text['kl_divergence']:.5f} "
                f"| {text['largest_kl_divergence']:.2f} | {100 * text['same_best_token']:.2f} % |",
                flush=True,
            )


if __name__ == "__main__":
    main()
