"""The report of a real search, by the launchers that users call."""

import json

import pytest
from launching import REPOSITORY, call, fails, finish, start

from experiments import report
from transformers_jax.genomes.genome import from_json
from transformers_jax.search.population import Population

SMALL = ("search.population=1", "search.children=1", "search.steps=(2,)", "search.final_seeds=0")


@pytest.mark.slow
def test_a_search_is_reported_while_it_runs_and_when_it_has_ended(tmp_path, corpus, capfd):
    pytest.importorskip("matplotlib")
    workdir = tmp_path / "searched"
    given = [f"--config={REPOSITORY}/configs/search.py:tiny", "--workers=0", *(f"--config.{option}" for option in SMALL)]
    code, out, err = finish(start(["-m", "experiments.search", *given, f"--workdir={workdir}", *corpus]))
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])
    code, out, err = call(report, capfd, f"--workdir={workdir}")
    page = workdir / "report" / "index.html"
    assert code == 0 and out == f"{page}\n", err
    text = page.read_text(encoding="utf-8")
    winner = from_json((workdir / "best.json").read_text()).text()
    assert winner in text and "<b>2</b><span>candidates of evolution</span>" in text
    assert f"<b>{found['compile_share']:.0%}</b><span>of the time spent compiling</span>" in text
    assert {"cell.png", "fitness.png", "front.png"} <= {path.name for path in page.parent.iterdir()}
    with Population(workdir) as population:  # as a search that has only begun leaves it
        population._connection.execute("UPDATE candidates SET state = 'proposed', finished = NULL, fitness = NULL")
        population._connection.commit()
    fails(report, capfd, f"--workdir={workdir}", says=["no candidate has been measured yet"])
    assert page.read_text(encoding="utf-8") == text
