"""All comparisons with PyTorch, by name."""

from parity import attention, beam, losses, optimizers, recurrent, transformer

MODULES = (attention, transformer, losses, recurrent, optimizers, beam)
CASES = {case.name: case for module in MODULES for case in module.CASES}
