"""Where the work of a program goes: units, strategies, tasks, devices, prices and bytes."""
