"""One script per question; each checks a result before it reports it and appends rows to `benchmarks/results/`."""
