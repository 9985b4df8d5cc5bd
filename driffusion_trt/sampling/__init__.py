"""Schedules, skip steps, plans and the executor that runs them, in numpy alone."""
