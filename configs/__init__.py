"""Recipes: plain Python files that build one `ml_collections.ConfigDict` each."""
