"""The sandbox's encoding: ffmpeg, probing, VMAF, the encode of one job, and the queue of jobs."""
