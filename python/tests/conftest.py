"""Shared by the tests: tiny models in Transformers' layout. Those that compare with torch and Transformers skip
with a clear line where these are missing."""

import importlib.util
import os
import pathlib
import signal

import numpy as np
import pytest

import ssm_cpp

# Ctrl-C is tested, also where the suite itself runs in the background of a shell, which has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["HF_HUB_OFFLINE"] = "1"  # a hub of this machine is the only one that tests ask

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "models" / "tale-10m"

SMALL = {"num_hidden_layers": 3, "hidden_size": 32, "state_size": 8, "vocab_size": 100}
CONFIGS = {
    "mamba": lambda: ssm_cpp.MambaConfig(**SMALL),
    "mamba2": lambda: ssm_cpp.Mamba2Config(**SMALL, num_heads=4, head_dim=16, n_groups=1, chunk_size=16),
    "falcon_mamba": lambda: ssm_cpp.FalconMambaConfig(**SMALL, tie_word_embeddings=False),
}

STAND_IN = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "vocab_size": 6144}
# Of the hub, as documents use them, with tiny models in their place.
NAMES = {
    "state-spaces/mamba-130m-hf": ("main", ssm_cpp.MambaConfig(**STAND_IN)),
    "state-spaces/mamba-2.8b-hf": ("main", ssm_cpp.MambaConfig(**{**STAND_IN, "hidden_size": 128})),
    "mistralai/Mamba-Codestral-7B-v0.1": (
        "refs/pr/9",
        ssm_cpp.Mamba2Config(**STAND_IN, num_heads=4, head_dim=16, n_groups=2, eos_token_id=0),
    ),
}


def pytest_report_header():
    missing = [name for name in ("torch", "transformers", "peft", "lm_eval") if importlib.util.find_spec(name) is None]
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


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A cache with the models, as huggingface_hub leaves it."""
    root = tmp_path_factory.mktemp("hub")
    for name, (revision, config) in NAMES.items():
        model = root / f"models--{name.replace('/', '--')}"
        snapshot = model / "snapshots" / "abc"
        ssm_cpp.AutoModelForCausalLM.from_config(config, seed=1).save_pretrained(snapshot)
        ssm_cpp.AutoTokenizer.from_pretrained(BUNDLED).save_pretrained(snapshot)
        (model / "refs" / revision).parent.mkdir(parents=True)
        (model / "refs" / revision).write_text("abc")
    return root
