"""The tiny bases: generators of their training text, their tokenizer, their pre-training."""
