"""The llama.cpp engine: GGUF files on CPU or CUDA. Nothing else calls the llama.cpp library to run a model."""
