"""Pages and plots of what was run: files in, HTML and CSV out; nothing here imports jax."""
