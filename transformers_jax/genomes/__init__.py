"""A genome as data: its vocabulary, validity and canonical form, and the cell that is a block of a model."""
