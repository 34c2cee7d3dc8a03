"""The models and dialogues of `make demo`: real, small, and made from packages of the Python index alone."""
