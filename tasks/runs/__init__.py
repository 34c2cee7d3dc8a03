"""What a run leaves to look at: in MLflow, and on Prefect's pages."""
