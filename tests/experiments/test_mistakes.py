"""Every mistake from the command line ends in one line that says what to do, with code 2, and touches nothing."""

import shutil

import jax
import pytest
from launching import REPOSITORY, command, content, fails, metrics

from experiments import embed, evaluate, predict, pretrain, report, translate
from transformers_jax import config as configuration
from transformers_jax.files import locked

CONFIGS = REPOSITORY / "configs"


def pretraining(tmp_path, corpus, *more):
    return command(tmp_path / "w", corpus, *more)[2:]


@pytest.mark.parametrize(
    "flag, says",
    [
        ("--config.model.widht=3", ["--config.model.widht", "did you mean --config.model.width?"]),
        ("--config.training.steps=many", ["--config.training.steps=many", "int"]),
        ("--config.model=3", ["--config.model is a group", "model.width"]),
        ("--workdri=x", ["workdri", "Did you mean", "workdir"]),
        ("stray", ["'stray'", "--name=value"]),
        ("--config=configs/transformers.py:tiny", ["no file configs/transformers.py", "configs/transformer.py"]),
        ("--config=configs/transformer.py:tinny", ["unknown variant 'tinny'", "quickstart"]),
        ("--config.model.name=transfomer", ["config.model.name", "transformer"]),
        ("--config.model.num_heads=5", ["32", "5"]),
        ("--config.data.source=file", ["config.data.source", "files"]),
        ("--config.data.batching=pack", ["config.data.batching", "packing"]),
        ("--config.optimizer.name=adan", ["config.optimizer.name", "adam"]),
        ("--config.training.parallelism=jitt", ["config.training.parallelism", "jit, pmap"]),
        ("--config.training.accumulate=3", ["config.training.accumulate", "8"]),
        ("--config.mesh.tensor=2", ["config.mesh", "1 device"]),
        ("--config.tokenizer.vocab_size=10", ["tokenizer.vocab_size is 10"]),
        ("--config.tokenizer.kind=words", ["config.tokenizer.kind", "bpe"]),
        ("--config.tokenizer.path=nowhere", ["nowhere"]),
        ("--config.data.languages=en", ["config.data.languages", "('en', 'de')"]),
        ("--config.data.train=a.en", ["config.data.train", "give two"]),
        ("--config.data.validation=a.en,b.de", ["config.data.validation", "a.en"]),
        ("--config.data.max_length=1", ["config.data.max_length"]),
        ("--config.training.accumulate=0", ["config.training.accumulate is 0", "1 or more"]),
        ("--config.training.keep_checkpoints=0", ["config.training.keep_checkpoints is 0", "1 or more"]),
        ("--config.model.dtype=bf16", ["config.model.dtype is 'bf16'", "bfloat16, float16, float32"]),
        ("--config.model.param_dtype=double", ["config.model.param_dtype is 'double'", "float32"]),
        ("--config.training.bleu_sentences=-1", ["config.training.bleu_sentences is -1", "0 or more"]),
        ("--config.prng=philox", ["config.prng is 'philox'", "rbg, threefry2x32"]),
        ("--config.decoding.method=beams", ["decoding.method is 'beams'", "greedy, beam"]),
        ("--config.decoding.batch_size=1", ["decoding.batch_size is 1", "one beam"]),
        (f"--config={CONFIGS}/search.py:tiny", ["config of a search", "experiments.search", "best.json"]),
        (f"--config={CONFIGS}/bert.py:glue", ["config of several runs", "experiments.finetune", "sst2, cola"]),
    ],
)
def test_flags_and_keys(tmp_path, corpus, capfd, flag, says):
    fails(pretrain, capfd, *pretraining(tmp_path, corpus, flag), says=says)
    assert not (tmp_path / "w" / "checkpoints").exists()


def test_a_typo_in_a_config_file(tmp_path, capfd):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from configs import bert\n\n\ndef get_config():\n  c = bert.get_config()\n  c.model.widht = 3\n  return c\n"
    )
    says = [f"{mine}, line 6: c.model.widht: no such key; did you mean c.model.width?"]
    fails(pretrain, capfd, f"--config={mine}", f"--workdir={tmp_path}/w", says=says)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("launcher", [pretrain, evaluate, translate, report])
def test_missing_flags(capfd, launcher):
    if launcher is pretrain:
        fails(launcher, capfd, "--workdir=w", says=["--config is missing"])
        fails(launcher, capfd, "--config=configs/transformer.py:tiny", says=["--workdir is missing"])
    else:
        fails(launcher, capfd, says=["--workdir is missing"])
        fails(launcher, capfd, "--workdir=nowhere", says=["--workdir=nowhere", "holds no run"])


@pytest.mark.parametrize("launcher", [pretrain, evaluate])
def test_workdir_in_a_bucket(tmp_path, capfd, monkeypatch, launcher):
    monkeypatch.chdir(tmp_path)
    config = ["--config=configs/transformer.py:tiny"] if launcher is pretrain else []
    fails(launcher, capfd, *config, "--workdir=gs://mine/run", says=["--workdir=gs://mine/run", "mount the bucket"])
    assert not any(tmp_path.iterdir())


PLACES = ["--coordinator=localhost:1", "--num_processes=2", "--process_id=0"]


@pytest.mark.parametrize("places", [PLACES[:1], PLACES[1:], PLACES[::2]])
def test_a_process_without_its_place(capfd, monkeypatch, places):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_: pytest.fail("must not be called"))
    fails(embed, capfd, *places, says=["--coordinator, --num_processes and --process_id go together"])


def test_processes_that_do_not_come_together(capfd, monkeypatch):
    """Three flags, and those of Slurm's srun, are taken; an sbatch without srun is one process."""
    seen, before = [], jax.config.jax_cpu_collectives_implementation

    def refuse(*place):
        seen.append(place)
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    says = ["do not come together", "coordinator_address should be defined", "--coordinator=HOST:PORT"]
    try:
        fails(embed, capfd, *PLACES, says=says)
        monkeypatch.setenv("SLURM_NTASKS", "2")
        fails(embed, capfd, says=["--init_from is missing"])
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
        fails(embed, capfd, says=says)
    finally:
        jax.config.update("jax_cpu_collectives_implementation", before)
    assert seen == [("localhost:1", 2, 0), (None, None, None)]


def write(folder, **files):
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_bytes(text)
    return f"--config.data.train={folder}/train.en,{folder}/train.de"


@pytest.mark.parametrize(
    "files, says",
    [
        (dict(train_en=b"a\nb\nc\n", train_de=b"a\nb\n"), ["train.en has 3 lines", "train.de has 2", "line 3"]),
        (dict(train_en=b"", train_de=b""), ["train.en", "empty"]),
        (dict(train_en=b"a\nb\xff\n", train_de=b"a\nb\n"), ["train.en", "line 2", "UTF-8"]),
        (dict(train_en=b"\n\n", train_de=b"\n\n"), ["config.data.train", "no examples"]),
        (dict(train_en=b"\x1f\x8bgarbage", train_de=b"a\n"), ["train.en", "cannot read"]),
        (dict(train_de=b"a\n"), ["config.data.train", "no file", "train.en"]),
    ],
)
def test_corpus(tmp_path, corpus, capfd, files, says):
    flag = write(tmp_path, **files)
    fails(pretrain, capfd, *pretraining(tmp_path, corpus, flag), says=says)
    assert not (tmp_path / "w").exists()


def test_workdir_cannot_be_written(tmp_path, corpus, capfd):
    file = tmp_path / "file"
    file.write_text("mine")
    fails(pretrain, capfd, *command(file, corpus)[2:], says=[f"--workdir={file}", "is a file"])
    fails(pretrain, capfd, *command(file / "below", corpus)[2:], says=[f"--workdir={file}/below", "Not a directory"])
    fails(pretrain, capfd, *command("/proc/there", corpus)[2:], says=["--workdir=/proc/there"])
    assert file.read_text() == "mine"


def test_workdir_that_another_process_trains_in(tmp_path, corpus, capfd):
    with locked(tmp_path / "w", ""):
        fails(pretrain, capfd, *pretraining(tmp_path, corpus), says=[f"--workdir={tmp_path}/w", "another process trains in it"])
        assert [f.name for f in (tmp_path / "w").iterdir()] == ["lock"]


def test_loss_that_is_not_finite(tmp_path, corpus, capfd):
    flags = ["--config.optimizer.factor=1e30", "--config.training.checkpoint_every=1"]
    fails(pretrain, capfd, *pretraining(tmp_path, corpus, *flags), says=["loss is nan at step 2", "are kept"])
    assert [f.name for f in (tmp_path / "w" / "checkpoints").iterdir()] == ["1"]


def test_workdir_of_another_run(run, corpus, capfd):
    before = (run / "config.json").read_bytes(), content(run), metrics(run)
    flags = command(run, corpus, "--config.model.mlp_width=128", "--config.seed=3")[2:]
    fails(pretrain, capfd, *flags, says=["holds another run", "config.model.mlp_width is 64 there and 128 here", "1 more"])
    after = (run / "config.json").read_bytes(), content(run), metrics(run)
    assert str(before) == str(after)


def test_checkpoint_of_another_model(run, capfd):
    flags = [f"--workdir={run}", "--config.model.mlp_width=128"]
    fails(evaluate, capfd, *flags, says=["does not fit the model", "feed_forward"])


def test_no_such_checkpoint(run, capfd):
    fails(evaluate, capfd, f"--workdir={run}", "--step=7", says=["no checkpoint of step 7", "12"])


def test_two_ways_to_choose_a_checkpoint(run, capfd):
    for launcher in evaluate, translate:
        fails(launcher, capfd, f"--workdir={run}", "--average=2", "--step=12", says=["--average=2", "--step=12", "give one"])


@pytest.mark.parametrize("launcher", [evaluate, translate, predict])
def test_workdir_of_a_search(tmp_path, capfd, launcher):
    configuration.save(configuration.load(f"{CONFIGS}/search.py:tiny"), tmp_path)
    fails(launcher, capfd, f"--workdir={tmp_path}", says=["config of a search", "experiments.pretrain"])


def test_an_encoder_does_not_translate(encoder, capfd):
    fails(translate, capfd, f"--workdir={encoder}", says=["config.task.name=bert_pretraining does not translate"])


def test_no_such_search(run, capfd):
    fails(evaluate, capfd, f"--workdir={run}", "--config.decoding.method=beams", says=["method", "greedy, beam"])
    fails(translate, capfd, f"--workdir={run}", "--nbest=9", says=["n_best"])
    fails(translate, capfd, f"--workdir={run}", "--beam_size=0", says=["beam_size"])


def test_damaged_workdir(tmp_path, run, capfd):
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "config.json").write_text("{")
    fails(evaluate, capfd, f"--workdir={copy}", says=["config.json is damaged"])
    shutil.rmtree(copy / "checkpoints")
    shutil.copy(run / "config.json", copy)
    fails(evaluate, capfd, f"--workdir={copy}", says=["no checkpoint"])
