"""The stages of a fusion as Prefect tasks, and what turns a function into one."""
