"""What runs on a device: Python 3.9 or newer, numpy and ONNX Runtime, nothing else.

These files and ``deploynas/errors.py`` are what is copied to a board: the timing engine, the
worker that it drives, and the agent that receives models and streams samples back. The device
``cpu`` runs the same engine in this process.
"""
