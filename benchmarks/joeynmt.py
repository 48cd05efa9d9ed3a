"""Training and decoding speed beside JoeyNMT 2.3.0, on Multi30k English to German, in one run.

    python -m venv peer && peer/bin/pip install torch==2.13.0 joeynmt==2.3.0 importlib_metadata subword-nmt
    python -m benchmarks.joeynmt --data=DIR_OF_MULTI30K --peer=peer/bin/python

Both train the same model: 3 + 3 layers of width 256 (4 heads, feed-forward 1,024, pre-norm, dropout 0.2 in the same
places, one shared embedding) over a joint BPE vocabulary of about 8,000, on batches of 4,096 positions, and take turns.
Ours cuts a batch in two, whose activations a processor's cache holds longer: the gradient is the whole batch's. Counted
are real target tokens a second, each by its own tokenizer.

For decoding both turn the same 1,014 sentences into exactly 20 and exactly 60 tokens each, greedily, with hardly trained
weights: equal work, whatever a model has learned. Then up to the limit that JoeyNMT has by itself, 1.5 tokens for each of the
source: there of the longest source in a batch, here of each one. (JoeyNMT's greedy search does not read its own
min_output_length, so the end token is held back from outside.) Compile time is left out (a first call is not counted) and
so is loading.

The last line is one JSON object.
"""

import gzip
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

from benchmarks import runs
from experiments import launch

FLAGS = flags.FLAGS
flags.DEFINE_string("data", None, "folder with train, val and test_2016_flickr, .en.gz and .de.gz", required=True)
flags.DEFINE_string("peer", None, "python of an environment with joeynmt", required=True)
flags.DEFINE_integer("rounds", 3, "turns of each side")
flags.DEFINE_integer("updates", 12, "updates of JoeyNMT a turn; the first third is not counted")
flags.DEFINE_integer("steps", 30, "our steps a turn; the first third is not counted")
SENTENCES = 1014
LIMITS = {
    "20": (20, {"max_ratio": 0.0, "extra_length": 20}),
    "60": (60, {"max_ratio": 0.0, "extra_length": 60}),
    "1.5 * source": (-1, {"max_ratio": 1.5, "extra_length": 0}),
}
"""Tokens of an output: JoeyNMT's max_output_length and our decoder's options."""
GREEDY = """
import functools
from joeynmt import search
from joeynmt.__main__ import main
search.transformer_greedy = functools.partial(search.transformer_greedy, min_output_length=1000)
main()
"""
"""JoeyNMT's command, whose greedy search ends no output before its limit."""


def main(_):
    launch.use_large_pages()  # as every launcher does
    data, peer = Path(FLAGS.data).resolve(), Path(FLAGS.peer).absolute()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        prepare(data, peer, folder)
        train = {"joeynmt": [], "ours": []}
        for turn in range(FLAGS.rounds):
            train["joeynmt"].append(joeynmt_training(peer, folder))
            train["ours"].append(our_training(data, folder / f"ours{turn}"))
            print(f"turn {turn + 1}: " + "  ".join(f"{k} {v[-1]:.0f} tokens/s" for k, v in train.items()), flush=True)
        decode = {
            name: (joeynmt_decoding(peer, folder, limit), our_decoding(data, folder / "ours0", options))
            for name, (limit, options) in LIMITS.items()
        }
    rates = {name: statistics.median(values) for name, values in train.items()}
    result = {
        "train_tokens_per_second": {n: [round(v) for v in values] for n, values in train.items()},
        "train_ratio": round(rates["ours"] / rates["joeynmt"], 2),
        "greedy_seconds": {n: {"joeynmt": round(a, 2), "ours": round(b, 2)} for n, (a, b) in decode.items()},
        "greedy_ratio": {n: round(a / b, 1) for n, (a, b) in decode.items()},
    }
    print(json.dumps(result))


def prepare(data: Path, peer: Path, folder: Path) -> None:
    """JoeyNMT's files: text, merges, vocabulary, config. It validates on 8 sentences, so that it saves a model."""
    for split, name in ("train", "train"), ("val", "val"):
        for language in "en", "de":
            text = gzip.decompress((data / f"{split}.{language}.gz").read_bytes())
            (folder / f"{name}.{language}").write_bytes(text)
            if split == "val":
                (folder / f"few.{language}").write_bytes(b"".join(text.splitlines(keepends=True)[:8]))
    both = b"".join((folder / f"train.{language}").read_bytes() for language in ("en", "de"))
    tool = [peer.parent / "subword-nmt"]
    codes = subprocess.run([*tool, "learn-bpe", "-s", "8000"], input=both, capture_output=True, check=True).stdout
    (folder / "codes").write_bytes(codes)
    tokens = subprocess.run([*tool, "apply-bpe", "-c", folder / "codes"], input=both, capture_output=True, check=True)
    vocabulary = sorted(set(tokens.stdout.decode().split()))
    (folder / "vocabulary").write_text("\n".join(["<unk>", "<pad>", "<s>", "</s>", *vocabulary]) + "\n")
    (folder / "config.yaml").write_text(json.dumps(joeynmt_config(folder)))


def joeynmt_config(folder: Path) -> dict:
    def side(language):
        return {
            "lang": language, "max_length": 100, "level": "bpe", "lowercase": False, "normalize": False,
            "voc_file": str(folder / "vocabulary"), "tokenizer_type": "subword-nmt",
            "tokenizer_cfg": {"codes": str(folder / "codes"), "num_merges": 8000, "pretokenizer": "none"},
        }  # fmt: skip

    def stack():
        return {
            "type": "transformer", "num_layers": 3, "num_heads": 4, "hidden_size": 256, "ff_size": 1024,
            "embeddings": {"embedding_dim": 256, "scale": True, "dropout": 0.2}, "dropout": 0.2, "layer_norm": "pre",
        }  # fmt: skip

    return {
        "name": "multi30k", "joeynmt_version": "2.3.0", "model_dir": str(folder / "model"), "use_cuda": False,
        "fp16": False,
        "data": {
            "train": str(folder / "train"), "dev": str(folder / "few"), "test": str(folder / "few"),
            "dataset_type": "plain", "src": side("en"), "trg": side("de"),
        },
        "testing": {
            "beam_size": 1, "batch_size": 64, "batch_type": "sentence", "eval_metrics": ["bleu"],
        },
        "training": {
            "optimizer": "adamw", "normalization": "tokens", "adam_betas": [0.9, 0.98], "learning_rate": 0.001,
            "scheduling": "warmupinversesquareroot", "learning_rate_warmup": 800, "learning_rate_min": 0.0001,
            "label_smoothing": 0.1, "loss": "crossentropy", "batch_size": 4096, "batch_type": "token",
            "early_stopping_metric": "loss", "epochs": 100, "updates": FLAGS.updates, "validation_freq": FLAGS.updates,
            "logging_freq": 1, "overwrite": True, "random_seed": 42,
        },
        "model": {
            "tied_embeddings": True, "tied_softmax": True, "encoder": stack(), "decoder": stack(),
        },
    }  # fmt: skip


def joeynmt(command: list, folder: Path, **how) -> tuple[str, str]:
    """What a command of JoeyNMT says, on stdout and on stderr."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, **how)
    if done.returncode:
        sys.exit(f"error: joeynmt failed: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout, done.stderr


def joeynmt_training(peer: Path, folder: Path) -> float:
    """Target tokens a second, the median of its log's lines, one an update."""
    said = "".join(joeynmt([peer, "-m", "joeynmt", "train", folder / "config.yaml"], folder))
    rates = [float(x) for x in re.findall(r"Tokens per Sec: +([\d.]+)", said)]
    return statistics.median(rates[len(rates) // 3 :])


def our_training(data: Path, workdir: Path) -> float:
    """Target tokens a second, the median of metrics.jsonl's lines, one a step."""
    lines = runs.pretrain(
        "transformer", data, workdir, "--config.data.batch_size=64", "--config.model.dropout=0.2",
        "--config.model.attention_dropout=0.2", "--config.model.mlp_dropout=0.2",
        "--config.training.accumulate=2", f"--config.training.steps={FLAGS.steps}",
    )  # fmt: skip
    return runs.tokens_per_second(lines)


def sentences(folder: Path) -> list[str]:
    return (folder / "val.en").read_text(encoding="utf-8").split("\n")[:SENTENCES]


def joeynmt_decoding(peer: Path, folder: Path, limit: int) -> float:
    """Seconds to turn the validation set into so many tokens each, by its own log."""
    config = joeynmt_config(folder)
    config["testing"]["max_output_length"] = limit
    (folder / "decoding.yaml").write_text(json.dumps(config))
    command = [peer, "-c", GREEDY, "translate", folder / "decoding.yaml"]
    out, log = joeynmt(command, folder, input="\n".join(sentences(folder)) + "\n")
    if (found := out.count("\n")) != SENTENCES:
        sys.exit(f"error: joeynmt translated {found} lines of {SENTENCES}: its time would compare nothing")
    return float(re.findall(r"Generation took ([\d.]+)", log)[-1])


def our_decoding(data: Path, workdir: Path, options: dict) -> float:
    """Seconds for the same by our decoder; the end token is one that no model gives."""
    from transformers_jax import config as configuration
    from transformers_jax.runs.experiment import Experiment

    run = Experiment(configuration.read(workdir), workdir)
    run.tokenizer.encode("")
    decoder = run.decoder(method="greedy", **options)
    decoder.eos_id = run.tokenizer.vocab_size  # never comes
    lines = gzip.decompress((data / "val.en.gz").read_bytes()).decode().split("\n")[:SENTENCES]
    params = run.trained()["params"]

    def decode() -> float:
        began = time.perf_counter()
        found = run.task.translate(lines, decoder, params)
        assert len(found) == SENTENCES
        return time.perf_counter() - began

    decode()  # compiles
    return statistics.median(decode() for _ in range(3))


if __name__ == "__main__":
    app.run(main)
