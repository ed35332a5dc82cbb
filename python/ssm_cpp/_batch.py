"""Padded batches to ragged ones and back: padding is never computed."""

import numpy as np

from ._arrays import library_of, to_numpy


class Batch:
    """Rows of a [B, L] batch whose attention mask is one run of ones each, on either side."""

    def __init__(self, shape, attention_mask=None):
        self.rows, self.length = shape
        self.mask = None
        if attention_mask is not None:
            mask = to_numpy(attention_mask).astype(bool)
            if mask.shape != tuple(shape):
                raise ValueError(f"attention_mask is {mask.shape}, the batch {tuple(shape)}")
            if not mask.all():
                self.mask = mask
        if self.mask is None:
            self.lengths = self.kept_lengths = [self.length] * self.rows
            self.slots = list(range(self.rows))  # of the rows that hold a token
        else:
            self.lengths = self.mask.sum(axis=1).tolist()
            runs = np.diff(self.mask.astype(np.int8), axis=1, prepend=0) == 1
            if (runs.sum(axis=1) > 1).any():
                raise ValueError("attention_mask: a row's ones must stand together, padding on one side")
            self.slots = [i for i, n in enumerate(self.lengths) if n > 0]
            self.kept_lengths = [self.lengths[i] for i in self.slots]

    def flat(self, x):
        """[B, L, ...] -> [T, ...], padding left out."""
        whole = x.reshape(self.rows * self.length, *x.shape[2:])
        return whole if self.mask is None else library_of(x).take(whole, self._places)

    def padded(self, x):
        """[T, ...] -> [B, L, ...], zeros where padding is."""
        shape = (self.rows, self.length, *x.shape[1:])
        if self.mask is None:
            return x.reshape(shape)
        library = library_of(x)
        zeros = library.zeros((self.rows * self.length, *x.shape[1:]), x.dtype)
        return library.put(zeros, self._places, x).reshape(shape)

    @property
    def _places(self) -> np.ndarray:
        """Of the tokens in [B * L]."""
        return np.flatnonzero(self.mask)

    def split(self, ids: np.ndarray) -> list:
        """[B, L] -> a list of ids for each row."""
        return [row.tolist() if self.mask is None else row[self.mask[i]].tolist() for i, row in enumerate(ids)]
