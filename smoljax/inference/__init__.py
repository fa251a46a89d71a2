"""Generation: prefill, sampling, speculative decoding, text as it comes."""
