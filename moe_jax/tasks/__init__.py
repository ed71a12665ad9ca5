"""What a task is: what a batch holds, what its loss sums up, and what the results of its runs are called."""
