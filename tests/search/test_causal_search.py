"""A search for the block of a language model, end to end: its candidates are measured by the bits of a byte."""

import json
import math

from fake import REPOSITORY

from transformers_jax import config as configuration
from transformers_jax.data.text.tokenizer import Tokenizer
from transformers_jax.genomes import genome
from transformers_jax.models import with_genome
from transformers_jax.runs.experiment import Experiment
from transformers_jax.search import driver
from transformers_jax.search.population import Population
from transformers_jax.search.summary import BEST


def test_a_block_of_gpt_is_searched(tmp_path, corpus):
    config = configuration.load(f"{REPOSITORY}/configs/search.py:tiny_causal_lm")
    for split in "train", "validation":
        config.data[split] = f"{corpus}/{split}.en"
    config.search.update(population=2, children=1, steps=(2,))
    found = driver.search(config, tmp_path / "w", workers_wanted=0)
    with Population(tmp_path / "w") as population:
        rows = [row for row in population.rows() if row["state"] == "done"]
    assert rows and found["best_fitness"] == max(row["fitness"] for row in rows)
    assert found["best_bits_per_byte"] == -found["best_fitness"] / math.log(2) and 1 < found["best_bits_per_byte"] < 10
    low, high = config.search.parameters
    sizes = {"num_heads": 4, "mlp_width": 64, "max_length": 32}
    vocabulary = Tokenizer.load(tmp_path / "w").vocab_size
    for row in rows:
        assert low <= row["parameters"] <= high
        made = genome.from_json(row["genome"])
        assert row["parameters"] == with_genome.count_continuing(made, 16, row["unit"], vocabulary, **sizes)
    best = tmp_path / "w" / BEST
    config.model.genome = str(best)
    assert Experiment(config, tmp_path / "w").model.config.genome == genome.from_json(best.read_text()).text()
    assert json.loads(best.read_text())["unit"] == found["unit"]
