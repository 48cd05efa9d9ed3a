"""A run from a config and a workdir: training, evaluation, pretrained weights in, other formats out."""
