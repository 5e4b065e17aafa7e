"""What a run does, for people who watch it: the scheduler's monitor, its pages, its metrics."""
