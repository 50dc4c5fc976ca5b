"""What people look at: drawings, plots and the report of a run."""
