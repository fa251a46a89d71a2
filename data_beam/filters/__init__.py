"""What is kept for its quality: rules and their profiles, URL lists, trained classifiers."""
