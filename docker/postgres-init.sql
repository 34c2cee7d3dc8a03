-- Prefect searches names by trigrams; MLflow's runs and users have databases of their own.
CREATE EXTENSION IF NOT EXISTS pg_trgm;
CREATE DATABASE mlflow;
CREATE DATABASE mlflow_users;
