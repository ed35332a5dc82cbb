"""Shared by the tests: tiny models in Transformers' layout. Those that compare with torch and Transformers skip
with a clear line where these are missing."""

import importlib.util
import os
import pathlib

import numpy as np
import pytest

import ssm_cpp

os.environ["HF_HUB_OFFLINE"] = "1"  # a hub of this machine is the only one that tests ask

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "models" / "tale-8m"

SMALL = {"num_hidden_layers": 3, "hidden_size": 32, "state_size": 8, "vocab_size": 100}
CONFIGS = {
    "mamba": lambda: ssm_cpp.MambaConfig(**SMALL),
    "mamba2": lambda: ssm_cpp.Mamba2Config(**SMALL, num_heads=4, head_dim=16, n_groups=1, chunk_size=16),
    "falcon_mamba": lambda: ssm_cpp.FalconMambaConfig(**SMALL, tie_word_embeddings=False),
}


def pytest_report_header():
    missing = [name for name in ("torch", "transformers", "lm_eval") if importlib.util.find_spec(name) is None]
    return f"NOT INSTALLED, and what needs it is skipped: {', '.join(missing)}" if missing else None


@pytest.fixture(params=sorted(CONFIGS))
def kind(request) -> str:
    return request.param


@pytest.fixture
def model(kind):
    return ssm_cpp.AutoModelForCausalLM.from_config(CONFIGS[kind](), init="reference", seed=3)


@pytest.fixture(scope="session")
def bundled():
    return ssm_cpp.AutoModelForCausalLM.from_pretrained(BUNDLED, dtype="float32")


@pytest.fixture
def random():
    return np.random.default_rng(5)
