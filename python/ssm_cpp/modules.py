"""The blocks by mamba_ssm's arguments: y.shape == x.shape, trainable. Modules of torch where torch is installed,
else classes over NumPy with forward and backward."""

import importlib.util

import numpy as np

from ._blocks import mamba2_spec, mamba_spec


class NumpyBlock:
    """parameters: name -> f32 array, read at every call. backward(dy) -> dx, and `gradients` by name."""

    def __init__(self, spec, seed: int = 0):
        self.spec = spec
        self.parameters = spec.first_values(np.random.default_rng(seed))
        self.gradients: dict = {}
        self._recorded = None

    def forward(self, x, gradient: bool = False):
        """x [B, L, M] -> [B, L, M]"""
        x = np.ascontiguousarray(x, np.float32)
        parameters = [self.parameters[name] for name in self.spec.names]
        y, self._recorded = self.spec.core.forward(
            x.reshape(-1, x.shape[-1]), parameters, [x.shape[1]] * x.shape[0], gradient
        )
        return y.reshape(x.shape)

    __call__ = forward

    def backward(self, dy):
        """Of the last forward(x, gradient=True)."""
        if self._recorded is None:
            raise ValueError("backward: there was no forward(x, gradient=True) before it")
        dy = np.ascontiguousarray(dy, np.float32)
        dx, gradients = self._recorded.backward(dy.reshape(-1, dy.shape[-1]))
        self._recorded = None
        self.gradients = dict(zip(self.spec.names, gradients, strict=True))
        return dx.reshape(dy.shape)


class NumpyMamba(NumpyBlock):
    def __init__(self, d_model, *args, seed: int = 0, **kwargs):
        super().__init__(mamba_spec(d_model, *args, **kwargs), seed)


class NumpyMamba2(NumpyBlock):
    def __init__(self, d_model, *args, seed: int = 0, **kwargs):
        super().__init__(mamba2_spec(d_model, *args, **kwargs), seed)


if importlib.util.find_spec("torch") is not None:
    from ._torch_blocks import Mamba, Mamba2
else:
    Mamba, Mamba2 = NumpyMamba, NumpyMamba2

__all__ = ["Mamba", "Mamba2", "NumpyMamba", "NumpyMamba2"]
