"""The page that people read: one HTML file that needs nothing else."""
