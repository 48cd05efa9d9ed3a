"""What launchers tell of configs: --list the variants with what they are, --help the keys with what they mean."""

import pytest

from experiments import about, finetune, launch, pretrain
from transformers_jax import config as configuration

FILES = [path for path in sorted(about.CONFIGS.glob("[!_]*.py")) if path.stem != "base"]


def printed(launcher, capsys, *flags):
    with pytest.raises(SystemExit) as end:
        launch.parse(launcher.FLAGS, ["launcher", *flags], "about")
    assert not end.value.code
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_variant_has_a_row_and_every_row_is_a_variant(path):
    rows = about.variants(path)
    told = [name for names, _ in rows for name in names]
    assert sorted(told) == sorted(about.known(path)) and all(what for _, what in rows)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_key_of_every_variant_has_a_meaning(path):
    for name in about.known(path):
        config = configuration.load(f"{path}:{name}")
        meanings = about.meanings(path, config)
        assert [key for key, _ in configuration.flatten(config) if not meanings.get(key)] == [], name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_names_the_form_of_its_files(path):
    assert "--config.data.train=" in about._docstring(path)


def test_list(capsys):
    lines = printed(finetune, capsys, f"--config={about.CONFIGS}/bert.py:squad", "--list")
    assert "squad" in [line.split()[0] for line in lines] and any("SQuAD 1.1, from TFDS or files" in line for line in lines)
    lines = printed(pretrain, capsys, "--list")
    assert any(line.split()[0] == "configs/segformer.py" and "SegFormer" in line for line in lines)


def test_list_of_a_file_without_a_table(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        '"""Mine."""\nfrom configs import bert\n\ndef get_config(variant="a"):\n    return bert.get_config(variant)\n'
    )
    assert "  swag" in printed(pretrain, capsys, f"--config={tmp_path}/mine.py", "--list")
    with pytest.raises(about.UserError, match="no file nowhere.py"):
        launch.parse(pretrain.FLAGS, ["launcher", "--config=nowhere.py", "--list"])


def test_help_shows_the_keys_of_a_config(capsys):
    lines = printed(pretrain, capsys, "--help", f"--config={about.CONFIGS}/vit.py:tiny")
    assert any("--dry_run" in line for line in lines)
    (dropout,) = [line for line in lines if "--config.model.dropout=" in line]
    assert dropout.endswith("where the paper drops elements")  # of images, and not what models of texts mean by it
    assert not any("--config." in line and "=" in line.split()[0] for line in printed(pretrain, capsys, "--help"))
