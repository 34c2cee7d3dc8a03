"""New sources: how they land, who hears of it, and what becomes of each."""
