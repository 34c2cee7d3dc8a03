"""More lab sources than the demo has, for the tables that ask about tokenizers, templates and numbers of sources."""
