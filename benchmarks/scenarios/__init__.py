"""What is measured; each module has one `run(bench)` that returns a section of results."""
