"""A Hugging Face checkpoint as it lies on disk: weights, tokenizer, and the check that the result reads text alike."""
