"""Searches for an architecture by training many; the same command again goes on where it stopped.

python -m experiments.search --config=configs/search.py:quickstart --workdir=DIR [--workers=N] [--ray_address=ADDRESS]
    [--config.search.method=evolution|evolution_no_hurdles|evolution_random_seed|random]
    [--config.search.controls="('random',)"] [--config.search.seed_genome=transformer …]

Methods and their controls are given the same number of training steps. The last line is one JSON object; the winner is in
DIR/best.json: --config.model.genome=DIR/best.json trains it.
"""

from absl import flags

from experiments import launch
from transformers_jax.errors import UserError

FLAGS = launch.flags_of(config="file")
flags.DEFINE_integer("workers", -1, "0: in this process; -1: one an accelerator, or a core", -1, flag_values=FLAGS)
flags.DEFINE_string("ray_address", "", "of a Ray cluster, HOST:PORT or auto; by default Ray starts here", flag_values=FLAGS)


def main(args, config) -> None:
    import jax

    from transformers_jax.search import driver, summary

    if not args.workdir:
        raise UserError("--workdir is missing: give the folder to search in")
    if "search" not in config:
        raise UserError(f"--config={args.config} has no group search: give configs/search.py:VARIANT")
    if args.workers != 0:
        jax.config.update("jax_platforms", "cpu")  # accelerators are the workers'
    found = driver.search(config, args.workdir, workers_wanted=args.workers, ray_address=args.ray_address)
    print(*summary.sentences(found, args.workdir), summary.as_json(found), sep="\n")


if __name__ == "__main__":
    launch.run(main, FLAGS)
