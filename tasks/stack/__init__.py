"""The servers of one machine (S3, MLflow, Prefect and a worker), started, looked at and stopped as one."""
