"""GGUF files: recipes, plan, importance matrix, verification."""
