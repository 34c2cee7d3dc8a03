"""Does fusing pay? Tables over several seeds, with their controls, on real models and dialogues."""
