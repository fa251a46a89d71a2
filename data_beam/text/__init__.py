"""What every stage needs to know about text: its language, a clean form, words, personal data."""
