"""Results of a benchmark run: statistics, tables and plots."""
