"""The numerics and formats of Fuseline, from reading dialogues to the report; knows neither Prefect, MLflow nor S3."""
