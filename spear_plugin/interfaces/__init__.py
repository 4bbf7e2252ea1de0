"""What benchmarks import: a module or class for each, in the form that it asks for."""
