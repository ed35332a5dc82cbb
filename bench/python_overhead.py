#!/usr/bin/env python3
"""What Python adds: the time of `import ssm_cpp`, and of a call beside a decode step of the bundled model.

    python3 bench/python_overhead.py [--rounds 7] [--steps 200]      (with ssm_cpp installed)

A call's own cost is what is left of it without a layer: that of models of one layer and of five, width 16, one thread,
continued to none. The embedding, the last norm and the head of width 16 are still in it, so it is a bound from above.
`binding` is the compiled function, `model(...)` what a user calls, with the cache and the outputs.
"""

import argparse
import pathlib
import statistics
import subprocess
import sys
import time

import numpy as np

import ssm_cpp
from ssm_cpp import _core

ROOT = pathlib.Path(__file__).resolve().parent.parent


def import_seconds(before: str) -> float:
    code = f"{before}import time; t = time.perf_counter(); import ssm_cpp; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def per_call(call, steps: int) -> float:
    for _ in range(10):
        call()
    begin = time.perf_counter()
    for _ in range(steps):
        call()
    return (time.perf_counter() - begin) / steps


def calls(model):
    """(the binding's decode step, the user's) of a sequence."""
    core, ids = model._core, np.array([1], np.int32)
    state, cache = _core.State(core, 1), model.new_cache(1)
    return lambda: core.forward(ids, None, [1], state, [0], False, True), lambda: model([[1]], cache_params=cache)


def small(layers: int):
    config = ssm_cpp.MambaConfig(
        vocab_size=16, hidden_size=16, num_hidden_layers=layers, state_size=4, time_step_rank=1
    )
    return ssm_cpp.MambaForCausalLM(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=200)
    a = parser.parse_args()
    for what, before in (("import ssm_cpp", ""), ("the same with NumPy there", "import numpy; ")):
        seconds = [import_seconds(before) for _ in range(a.rounds)]
        print(f"{what:28} median {statistics.median(seconds) * 1e3:7.1f} ms   quickest {min(seconds) * 1e3:7.1f} ms")
    whole = ssm_cpp.AutoModelForCausalLM.from_pretrained(ROOT / "models/tale-10m")
    threads, steps, alone = ssm_cpp.num_threads(), calls(whole), [*calls(small(1)), *calls(small(5))]
    rounds = []
    for _ in range(a.rounds):
        ssm_cpp.set_num_threads(threads)
        row = [per_call(c, a.steps) for c in steps]
        ssm_cpp.set_num_threads(1)  # what waking others costs belongs to the work
        rounds.append([*row, *(per_call(c, a.steps) for c in alone)])
    for what, of in (("medians", statistics.median), ("quickest", min)):
        step, user_step, one, user_one, five, user_five = (of(column) * 1e6 for column in zip(*rounds, strict=True))
        call, user_call = one - (five - one) / 4, user_one - (user_five - user_one) / 4
        print(what)
        print(f"{'  decode step, bundled model':28} binding {step:8.1f} us   model(...) {user_step:8.1f} us")
        print(f"{'  a layer of width 16':28} binding {one:8.1f} us   model(...) {user_one:8.1f} us")
        print(f"{'  no layer: the call, at most':28} binding {call:8.1f} us   model(...) {user_call:8.1f} us")
        share, user_share = 100 * call / step, 100 * user_call / user_step
        print(f"{'  of a step':28} binding {share:8.2f} %    model(...) {user_share:8.2f} %")


if __name__ == "__main__":
    main()
