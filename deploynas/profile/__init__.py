"""The device profile, the profiler that fills it, the latency model that reads it."""
