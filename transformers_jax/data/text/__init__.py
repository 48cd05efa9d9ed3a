"""Text: tokenizers, and the sources that read files of lines, tables and JSON."""
