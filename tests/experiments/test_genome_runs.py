"""A genome from a file trains, goes on, and translates like any other model."""

import json

from launching import call, command, fails, metrics

from experiments import pretrain, translate
from transformers_jax import config as configuration
from transformers_jax.genomes.genome import EVOLVED_TRANSFORMER, replace

GENOME = replace(EVOLVED_TRANSFORMER, {"encoder_cells": 1, "decoder_cells": 1, "encoder.1.right.layer": "light7r4"})


def test_a_genome_file_trains_resumes_and_translates(tmp_path, corpus, capfd, monkeypatch):
    file, workdir = tmp_path / "best.json", tmp_path / "run"
    file.write_text(json.dumps(json.loads(GENOME.to_json()) | {"unit": 8}))
    options = [f"--config.model.genome={file}", "--config.data.test=", "--config.training.bleu_every=0"]

    def train(steps, *more):
        return call(pretrain, capfd, *command(workdir, corpus, *options, f"--config.training.steps={steps}", *more)[2:])

    code, out, err = train(2, "--dry_run")
    assert code == 0 and "parameters" in out and not workdir.exists(), err
    code, _, err = train(2)
    assert code == 0, err
    saved = configuration.read(workdir).model
    assert saved.genome == GENOME.text() and saved.genome_unit == 8

    code, _, err = train(4)  # the same command goes on
    assert code == 0 and [line["step"] for line in metrics(workdir) if line["split"] == "train"] == [2, 4], err
    file.unlink()  # the workdir has all it takes
    code, out, err = call(
        translate, capfd, f"--workdir={workdir}", "--average=1", stdin=b"the red dog .\n\n", monkeypatch=monkeypatch
    )
    assert code == 0 and len(out.splitlines()) == 2, err

    file.write_text(EVOLVED_TRANSFORMER.to_json())  # another genome is another run
    given = command(workdir, corpus, *options)[2:]
    fails(pretrain, capfd, *given, says=["holds another run", "config.model.genome"])
