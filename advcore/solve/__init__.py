"""From checked arrays to the results of a run: back ends, schedules, verification."""
