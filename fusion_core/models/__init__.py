"""Models and tokenizers: what identifies them, what may be wrong with them, how they are loaded and described."""
