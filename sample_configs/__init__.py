"""Owns the configurations that ship with calseg; installed as calseg_cli.sample_configs."""
