"""Models on disk: our checkpoints, Hugging Face folders, GGUF files."""
