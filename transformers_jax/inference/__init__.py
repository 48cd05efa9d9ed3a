"""A trained model on new input: labels and answers for lines, vectors of sentences."""
