"""Pages, plots and tables, made from results, never from a model."""
