"""MLflow's model registry: registering, promoting, and telling what a version was made from."""
