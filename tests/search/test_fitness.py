"""One candidate's training by the project's own loop, and a whole search from the command line."""

import dataclasses
import errno
import json
import math

import fake
import pytest

from experiments import launch
from experiments import search as launcher
from transformers_jax import config as configuration
from transformers_jax import models
from transformers_jax.errors import DiskError
from transformers_jax.genomes import genome
from transformers_jax.models import with_genome
from transformers_jax.runs.experiment import Experiment, write
from transformers_jax.search import fitness
from transformers_jax.search.fitness import Trainer
from transformers_jax.search.job import Job
from transformers_jax.search.population import Population
from transformers_jax.training import integrity

IDLE = " ; ".join(f"{i}:id | dead" for i in range(1, 6))
CHEAP = f"encoder ×1: 0*conv1 2 relu | 0:id ; {IDLE}\ndecoder ×1: 0*enc 2 | 0:id ; {IDLE} ; 6:id | dead ; 7:id | dead"
SPENT = ("compile_seconds", "train_seconds")


def make(corpus, workdir, **keys):
    """A trainer in a workdir; keys: of the config, dots as double underscores."""
    config = fake.config(corpus)
    for key, value in keys.items():
        group, _, name = key.partition("__")
        config[group][name] = value
    write(Experiment(config, workdir, training=True))
    return Trainer(config.to_dict(), str(workdir))


def job(workdir, **changes):
    return dataclasses.replace(Job(CHEAP, 8, (2, 2), (-math.inf,), 0, str(workdir / "candidate")), **changes)


def outcome(result):
    return {name: value for name, value in dataclasses.asdict(result).items() if name not in SPENT}


@pytest.fixture(scope="module")
def trainer(corpus, tmp_path_factory):
    return make(corpus, tmp_path_factory.mktemp("trainer"))


@pytest.fixture(scope="module")
def result(trainer, tmp_path_factory):
    """Two stages of two steps."""
    return trainer(job(tmp_path_factory.mktemp("job")))


def test_result(result, trainer):
    assert result.failure is None and result.steps == 4 and len(result.stages) == 2
    assert -math.log(400) * 1.5 < result.stages[0] < result.stages[1] < 0
    assert result.compile_seconds > 0 and result.train_seconds > 0
    vocabulary = trainer.shared.tokenizer.vocab_size
    assert result.parameters == with_genome.count_parameters(genome.parse(CHEAP), 16, 8, vocabulary, num_heads=8)


def test_stages_go_on_with_the_same_weights(result, trainer, tmp_path):
    """Two stages are one training of their sum; and what was trained before leaves no trace."""
    assert trainer(job(tmp_path, steps=(4,), hurdles=())).stages == (result.stages[1],)


def test_hurdle_and_seed(result, trainer, tmp_path):
    held = trainer(job(tmp_path, hurdles=(result.stages[0],)))  # not above it
    assert held.stages == result.stages[:1] and held.steps == 2
    other = trainer(job(tmp_path, steps=(2,), hurdles=(), seed=1))
    assert other.stages[0] != result.stages[0]


def test_invalid_genome_is_a_failure(trainer, tmp_path):
    failed = trainer(job(tmp_path, genome=CHEAP.replace("0*enc 2", "0*conv1 2")))
    assert failed.failure == "config.model.genome: decoder: no branch attends to the encoder (layer enc)"
    assert failed.stages == () and failed.steps == 0


def test_loss_that_is_not_finite_is_a_failure(corpus, tmp_path):
    failed = make(corpus, tmp_path, optimizer__learning_rate=1e30, training__log_every=1)(job(tmp_path))
    assert failed.failure.startswith("loss is nan at step ") and len(failed.failure) < 30
    assert failed.stages == () and 0 < failed.steps <= 2


@pytest.mark.parametrize(
    "error, says",
    [
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating\n 9 bytes"), "out of memory: RESOURCE_EXHAUSTED: Out of"),
        (MemoryError(), "out of memory: "),
        (TypeError("add got incompatible shapes\nfor broadcasting"), "TypeError: add got incompatible shapes for broad"),
    ],
)
def test_reasons_are_one_line(error, says):
    assert fitness.reason(error).startswith(says) and "\n" not in fitness.reason(error)


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device", "/a/file")


def test_options_that_xla_does_not_know_are_left_out(monkeypatch):
    assert fitness.compiler_options(1) == {"xla_backend_optimization_level": 1, **fitness.SOONER}
    monkeypatch.setattr(fitness, "SOONER", {"xla_cpu_no_such_option": True})
    assert fitness.compiler_options(1) == {"xla_backend_optimization_level": 1}


def test_a_fault_of_the_machine_is_not_the_candidates(trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(fitness.Training, "prepare", full)
    with pytest.raises(DiskError, match="^/a/file: No space left on device; "):
        trainer(job(tmp_path))


def test_a_checkpoint_that_cannot_be_written_is_not_the_candidates_fault(result, corpus, tmp_path, monkeypatch):
    trainer = make(corpus, tmp_path, training__checkpoint_every=1)
    with monkeypatch.context() as patch, pytest.raises(DiskError, match="cannot write checkpoint .*: No space left"):
        patch.setattr(integrity, "seal", full)
        trainer(job(tmp_path))
    assert outcome(trainer(job(tmp_path))) == outcome(result)


@pytest.mark.parametrize("damaged, again", [("", [4]), ("stages.json", [2, 2, 4, 4]), ("checkpoints", [4, 4, 4, 4])])
def test_killed_training_goes_on_from_its_checkpoint(result, corpus, tmp_path, monkeypatch, damaged, again):
    """Where the first stage's fitness is lost, or the checkpoint cannot be read, all is trained anew."""
    trainer, step, made = make(corpus, tmp_path, training__checkpoint_every=1), fitness.Training._step, []

    def dies(self, state, batch):
        if len(made) == 3:  # in the second stage
            raise KeyboardInterrupt
        made.append(self.total)
        return step(self, state, batch)

    monkeypatch.setattr(fitness.Training, "_step", dies)
    with pytest.raises(KeyboardInterrupt):
        trainer(job(tmp_path))
    assert made == [2, 2, 4] and json.loads((tmp_path / "candidate" / "stages.json").read_text()) == [result.stages[0]]
    made.clear()
    for file in (tmp_path / "candidate").rglob("*"):
        if damaged and file.is_file() and damaged in file.parts:
            file.write_text("")
    monkeypatch.setattr(fitness.Training, "_step", lambda self, *a: made.append(self.total) or step(self, *a))
    assert outcome(trainer(job(tmp_path))) == outcome(result) and made == again


def flags(corpus, workdir, *more):
    files = [f"--config.data.{s}={corpus}/{s}.en,{corpus}/{s}.de" for s in ("train", "validation")]
    config = f"--config={fake.REPOSITORY}/configs/search.py:tiny"
    return ["search", config, f"--workdir={workdir}", "--workers=0", *files, *more]


def test_search_from_the_command_line(corpus, tmp_path, capfd):
    small = ["--config.search.population=2", "--config.search.children=1", "--config.search.steps=(1,)"]
    small += ["--config.search.final_seeds=0", "--config.search.parameters=()"]
    arguments = flags(corpus, tmp_path, *small, f"--config.search.seed_genome={CHEAP}")
    code = launch.call(launcher.main, launcher.FLAGS, arguments)
    out, err = capfd.readouterr()
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])
    assert found["candidates"] == 3 and found["failed"] == 0 and found["trained"] >= 1 and 0 < found["compile_share"] < 1
    with Population(tmp_path) as population:
        rows = population.rows()
    assert rows[0]["genome"] == genome.parse(CHEAP).to_json() and rows[0]["worker"] == "inline"
    assert found["best_fitness"] == max(row["fitness"] for row in rows)
    assert "evolution candidate 3/3" in err
    model = configuration.read(tmp_path).model.to_dict() | {"genome": str(tmp_path / "best.json")}
    assert models.build(model, 400).config.encoder_layers == genome.load(str(tmp_path / "best.json")).encoder_cells


@pytest.mark.parametrize(
    "more, says",
    [
        (["--config.search.method=evolve"], "config.search.method is 'evolve'"),
        (["--config.search.populaton=3"], "did you mean --config.search.population?"),
        (["--workers=-2"], "workers"),
        ([f"--config={fake.REPOSITORY}/configs/transformer.py:tiny"], "has no group search"),
        (["--workdir="], "--workdir is missing"),
    ],
)
def test_mistakes_on_the_command_line(corpus, tmp_path, capfd, more, says):
    assert launch.call(launcher.main, launcher.FLAGS, flags(corpus, tmp_path / "w", *more)) == 2
    err = capfd.readouterr().err
    assert says in err.splitlines()[-1] and err.splitlines()[-1].startswith("error: ") and "Traceback" not in err
    assert not (tmp_path / "w").exists()
