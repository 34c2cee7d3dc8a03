"""Models of truly different architecture, size, tokenizer and template, trained from nothing: toys, on purpose."""
