"""Everything that people look at: pages, plots, drawings and tables."""
