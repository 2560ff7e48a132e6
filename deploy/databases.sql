-- Run once, when PostgreSQL starts with an empty volume.
CREATE DATABASE mlflow;
CREATE DATABASE prefect;
