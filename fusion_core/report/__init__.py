"""What a run tells its user: a summary as data, an HTML page without a network, tables on the terminal."""
