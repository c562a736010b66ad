"""A study on several machines: its stages as tasks of Ray, or as arrays of Slurm. They schedule; nothing here does."""
