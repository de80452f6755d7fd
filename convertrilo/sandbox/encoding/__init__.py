"""The sandbox's encoder: probing, ffmpeg, VMAF, and the worker that runs them."""
