"""What the blocks for NumPy and for torch share: arguments, sizes, first values, states."""

import json
import math

import numpy as np

from . import _core
from ._arrays import library_of


class Spec:
    """A block by mamba_ssm's arguments. `core` computes it; `names` are its parameters' in core's order."""

    def __init__(self, config: dict, init: dict):
        self.config, self.init = config, init
        self.core = _core.Block(json.dumps(config))
        self.shapes = {name: tuple(shape) for name, shape, _ in self.core.parameters}
        self.channels_innermost = {name for name, _, innermost in self.core.parameters if innermost}
        self.names = list(self.shapes)
        self.d_model, self.d_conv = config["hidden_size"], config["conv_kernel"]

    def first_values(self, random: np.random.Generator) -> dict:
        """As mamba_ssm initialises: linear layers and convolutions as torch does, dt log-uniform in
        [dt_min, dt_max] through its bias, A = -1 .. -N (Mamba-2: uniform in A_init_range), D and norms one."""
        init, values = self.init, {}
        for name, shape in self.shapes.items():
            if name == "A_log":
                low, high = init.get("A_init_range", (1, 16))
                drawn = len(shape) == 1
                A = random.uniform(low, high, shape) if drawn else np.arange(1.0, shape[1] + 1)
                value = np.broadcast_to(np.log(A), shape)
            elif name == "D" or name == "norm.weight":
                value = np.ones(shape)
            elif name in ("dt_bias", "dt_proj.bias"):
                low, high = math.log(init["dt_min"]), math.log(init["dt_max"])
                dt = np.maximum(np.exp(random.uniform(low, high, shape)), init["dt_init_floor"])
                value = dt + np.log(-np.expm1(-dt))
            else:
                weight = self.shapes[name.replace(".bias", ".weight")]
                bound = 1 / math.sqrt(math.prod(weight[1:]))
                if name == "conv1d.weight" and init.get("conv_init") is not None:
                    bound = init["conv_init"]
                if name == "dt_proj.weight":
                    bound = weight[1] ** -0.5 * init["dt_scale"]
                constant = name == "dt_proj.weight" and init["dt_init"] == "constant"
                value = np.full(shape, bound) if constant else random.uniform(-bound, bound, shape)
            values[name] = value.astype(np.float32)
        return values

    def state_shapes(self, batch: int) -> tuple:
        """(conv [B, C, K], ssm [B, E, N] or [B, H, P, N]), as mamba_ssm allocates them."""
        c = self.config
        conv = (batch, self.shapes["conv1d.weight"][0], self.d_conv)
        if c["model_type"] == "mamba2":
            return conv, (batch, c["num_heads"], c["head_dim"], c["state_size"])
        return conv, (batch, c["intermediate_size"], c["state_size"])

    def step(self, x, parameters, conv, ssm):
        """x [B, M] and states in mamba_ssm's layouts, written in place -> y [B, M]."""
        library = library_of(x)
        ours = library.compact(library.swapaxes(conv[..., 1:], 1, 2))
        h = library.compact(library.swapaxes(ssm, -1, -2))
        y, _ = self.core.forward(x, parameters, [1] * len(x), False, ours, h)
        y = library.taken(y)
        conv[..., 0] = conv[..., 1]
        conv[..., 1:] = library.swapaxes(ours, 1, 2)
        ssm[...] = library.swapaxes(h, -1, -2)
        return y


def mamba_spec(
    d_model,
    d_state=16,
    d_conv=4,
    expand=2,
    dt_rank="auto",
    dt_min=0.001,
    dt_max=0.1,
    dt_init="random",
    dt_scale=1.0,
    dt_init_floor=1e-4,
    conv_bias=True,
    bias=False,
    use_fast_path=True,
    layer_idx=None,
) -> Spec:
    if dt_init not in ("random", "constant"):
        raise ValueError(f"dt_init {dt_init!r}: expected 'random' or 'constant'")
    config = {
        "model_type": "mamba",
        "hidden_size": d_model,
        "intermediate_size": int(expand * d_model),
        "state_size": d_state,
        "conv_kernel": d_conv,
        "time_step_rank": math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank,
        "use_bias": bias,
        "use_conv_bias": conv_bias,
    }
    init = {"dt_min": dt_min, "dt_max": dt_max, "dt_init_floor": dt_init_floor}
    return Spec(config, {**init, "dt_init": dt_init, "dt_scale": dt_scale})


def mamba2_spec(
    d_model,
    d_state=128,
    d_conv=4,
    conv_init=None,
    expand=2,
    headdim=64,
    d_ssm=None,
    ngroups=1,
    A_init_range=(1, 16),
    D_has_hdim=False,
    rmsnorm=True,
    norm_before_gate=False,
    dt_min=0.001,
    dt_max=0.1,
    dt_init_floor=1e-4,
    dt_limit=(0.0, float("inf")),
    bias=False,
    conv_bias=True,
    chunk_size=256,
    use_mem_eff_path=True,
    layer_idx=None,
) -> Spec:
    inner = int(expand * d_model)
    if not rmsnorm or norm_before_gate or d_ssm not in (None, inner):
        raise ValueError("Mamba2: only rmsnorm=True, norm_before_gate=False and d_ssm=None are supported")
    if inner % headdim != 0:
        raise ValueError(f"Mamba2: expand * d_model is {inner}, no multiple of headdim {headdim}")
    config = {
        "model_type": "mamba2",
        "hidden_size": d_model,
        "state_size": d_state,
        "conv_kernel": d_conv,
        "num_heads": inner // headdim,
        "head_dim": headdim,
        "n_groups": ngroups,
        "D_has_hdim": D_has_hdim,
        "time_step_limit": [min(max(float(x), -3e38), 3e38) for x in dt_limit],  # JSON has no infinity
        "layer_norm_epsilon": 1e-5,
        "use_bias": bias,
        "use_conv_bias": conv_bias,
    }
    init = {"dt_min": dt_min, "dt_max": dt_max, "dt_init_floor": dt_init_floor}
    return Spec(config, {**init, "A_init_range": A_init_range, "conv_init": conv_init})
