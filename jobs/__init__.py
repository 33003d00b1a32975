"""The main job on real data, and jobs to copy from."""
