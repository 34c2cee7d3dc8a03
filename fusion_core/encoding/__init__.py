"""Dialogues to one model's tokens, with the bytes of the responses that every token covers."""
